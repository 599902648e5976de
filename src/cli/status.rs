//! `harpoon status`: what continuous mode has put where, once or until it is complete.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;
use tracing::{Level, info};

use super::args::{StatusArgs, StatusFormat};
use super::{Exit, outcome};
use crate::app::settings::LogSettings;
use crate::app::shutdown::{GRACE, Shutdown};
use crate::app::status::{self, Subject, Watched};
use crate::app::{node_run, telemetry};
use crate::report::progress::Screen;
use crate::report::status::bars::Bars;
use crate::report::status::{View, text, write_json, write_yaml};

/// The shortest time between two log lines of a watch without a terminal.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Runs the command.
pub(super) fn main(args: &StatusArgs) -> Result<Exit> {
    let level = if args.watch { Level::INFO } else { Level::WARN };
    let screen = telemetry::init(LogSettings { json: false, level });
    let subject = args.subject();
    let (view, left) = node_run::block_on(async {
        let shutdown = Shutdown::on_signal(Some(GRACE))?;
        let end = shutdown.or_deadline(None);
        if !args.watch {
            let once = status::once(args.cluster(), &subject);
            let view = end.before(Box::pin(once)).await??;
            return Ok((view, None));
        }
        let mut shown = Shown::new(&screen);
        let see = |view: &View| shown.see(view);
        let follow = status::follow(args.cluster(), &subject, args.timeout, see);
        let watched = end.before(Box::pin(follow)).await;
        shown.close();
        let Watched { view, is_complete } = watched??;
        let limit = args.timeout.filter(|_| !is_complete);
        Ok((view, limit))
    })?;
    print(args, &view)?;
    if let View::Overview(all) = &view
        && all.prefetches.is_empty()
        && subject == Subject::All
    {
        // A release must not start because there was nothing to wait for.
        if args.watch {
            bail!("no ImagePrefetches found to wait for");
        }
        telemetry::write_error("No ImagePrefetches found");
    }
    match left {
        None => Ok(Exit::Done),
        Some(limit) => bail!(
            "not complete after {} (--timeout): {}",
            humantime::format_duration(limit),
            view.summary()
        ),
    }
}

fn print(args: &StatusArgs, view: &View) -> Result<()> {
    let colors = telemetry::has_colors(std::io::stdout().is_terminal());
    outcome::print(|out| match args.output {
        StatusFormat::Text | StatusFormat::Wide => text::write(out, view, args.style(colors)),
        StatusFormat::Json => write_json(out, view),
        StatusFormat::Yaml => write_yaml(out, view),
    })
}

/// The progress of a watch on standard error: bars, or log lines.
enum Shown {
    Bars(Bars),
    Log { last: Option<(String, Instant)> },
}

impl Shown {
    fn new(screen: &Screen) -> Self {
        let colors = telemetry::has_colors(std::io::stderr().is_terminal());
        match Bars::new(screen, colors) {
            Some(bars) => Self::Bars(bars),
            None => Self::Log { last: None },
        }
    }

    fn see(&mut self, view: &View) {
        match self {
            Self::Bars(bars) => bars.draw(view),
            Self::Log { last } => {
                let (summary, now) = (view.summary(), Instant::now());
                let is_due = last
                    .as_ref()
                    .is_none_or(|(text, at)| *text != summary && now - *at >= LOG_EVERY);
                if is_due || view.is_complete() {
                    info!("{summary}");
                    *last = Some((summary, now));
                }
            }
        }
    }

    fn close(&mut self) {
        if let Self::Bars(bars) = self {
            bars.close();
        }
    }
}
