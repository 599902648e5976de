//! `harpoon manifests`: the objects that install harpoon on a cluster, for `kubectl apply -f -`.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;

use super::outcome;
use super::{Exit, args};
use crate::discovery::images_file;
use crate::manifests::{self, Typed};

/// Runs the command.
pub(super) fn main(matches: &ArgMatches) -> Result<Exit> {
    let mut typed = Typed {
        settings: args::typed(matches),
        ..Typed::default()
    };
    for flag in manifests::options::FLAGS {
        if let Some(value) = matches.get_one::<String>(flag.name) {
            typed.flags.insert(flag.name, value.clone());
        }
    }
    if let Some(file) = typed.flags.get("images-from") {
        let Some(listed) = images_file::read_images_file(Path::new(file))? else {
            bail!("there is no images file at {file}");
        };
        typed.listed = Some(
            listed
                .into_iter()
                .map(|candidate| candidate.image.to_string())
                .collect(),
        );
    }
    let objects = manifests::objects(&typed.options()?);
    let text = manifests::print(&objects).context("failed to write the objects as YAML")?;
    outcome::print(|out| out.write_all(text.as_bytes()))?;
    Ok(Exit::Done)
}
