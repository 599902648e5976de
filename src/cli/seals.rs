//! `harpoon seals` and `harpoon release`: the sealed and pinned images of this node.

use anyhow::{Result, bail};

use super::args::{Format, ReleaseArgs, SealsArgs};
use super::{Exit, outcome};
use crate::app::settings::SettingError;
use crate::app::{node_run, telemetry};
use crate::model::reference::Reference;
use crate::model::text::sanitize;
use crate::report::seals;
use crate::runtime::containerd::{Pins, Seals};
use crate::runtime::detect::Runtime;
use crate::runtime::image_service::ImageService;

/// Lists the seals.
pub(super) fn list(args: SealsArgs) -> Result<Exit> {
    let output = args.output.output;
    telemetry::init(args.output.logs());
    let settings = args.runtime.settings();
    let seals = node_run::block_on(async {
        let runtime = node_run::find_runtime(&settings).await?;
        let (seals, _) = of(&runtime)?;
        Ok(seals.list().await?)
    })?;
    let mut seals: Vec<_> = seals.into_values().collect();
    seals.sort_by(|one, other| one.image.cmp(&other.image));
    outcome::print(|out| match output {
        Format::Text => seals::write_text(out, &seals),
        Format::Json => seals::write_json(out, &seals),
    })?;
    Ok(Exit::Done)
}

/// Gives up seals and pins.
pub(super) fn release(args: ReleaseArgs) -> Result<Exit> {
    let images = args.images.iter().map(|image| {
        let reference = Reference::parse(image);
        reference.map_err(|error| SettingError::named("IMAGE", image, &error.to_string()))
    });
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let output = args.output.output;
    telemetry::init(args.output.logs());
    let settings = args.runtime.settings();
    let released = node_run::block_on(async {
        let runtime = node_run::find_runtime(&settings).await?;
        let named = (!images.is_empty()).then_some(&*images);
        let (seals, pins) = of(&runtime)?;
        let mut released = pins.release(named).await?;
        released.extend(seals.release(named).await?);
        released.sort();
        released.dedup();
        Ok(released)
    })?;
    for image in images.iter().map(Reference::normalized) {
        if !released.iter().any(|released| released == image) {
            tracing::warn!(image, "neither sealed nor pinned on this node");
        }
    }
    outcome::print(|out| match output {
        Format::Text => seals::write_released_text(out, &released),
        Format::Json => seals::write_released_json(out, &released),
    })?;
    Ok(Exit::Done)
}

fn of(runtime: &Runtime) -> Result<(&Seals, &Pins)> {
    if let Runtime::Cri(cri) = runtime
        && let (Some(seals), Some(pins)) = (cri.seals(), cri.pins())
    {
        return Ok((seals, pins));
    }
    bail!(
        "{} has no seals: sealing requires containerd",
        sanitize(&runtime.info().name)
    );
}
