//! `harpoon crds`: the CustomResourceDefinitions of continuous mode, as YAML.

use std::io::Write;

use anyhow::{Context, Result};

use super::{Exit, outcome};
use crate::api::v1alpha1;

/// Prints the definitions.
pub(super) fn main() -> Result<Exit> {
    let text = v1alpha1::yaml().context("failed to write the definitions as YAML")?;
    outcome::print(|out| out.write_all(text.as_bytes()))?;
    Ok(Exit::Done)
}
