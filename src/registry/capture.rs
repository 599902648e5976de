//! Captures everything that is logged during a test, at the level `TRACE`: by the program and by its libraries.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;

type Buffer = Arc<Mutex<Vec<u8>>>;

/// Captures until it is dropped. `tracing` events are those of the test's own thread; `log` records are those of all tests, so
/// the secrets to search for must be unique to a test.
pub(crate) struct Capture {
    buffer: Buffer,
    _guard: DefaultGuard,
}

impl Capture {
    pub(crate) fn start() -> Self {
        let _ = logged();
        // With a single subscriber, tracing asks only the thread that first reaches a callsite whether it is enabled, and caches
        // a no for all threads. A subscriber for the whole process, which writes nothing, enables it.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let buffer = Buffer::default();
        let sink = Sink(Arc::clone(&buffer));
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .finish();
        Self {
            buffer,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        let own = self.buffer.lock().unwrap().clone();
        let logged = logged().lock().unwrap().clone();
        String::from_utf8_lossy(&[own, logged].concat()).into_owned()
    }

    /// Panics if one of the secrets was logged.
    #[track_caller]
    pub(crate) fn lacks(&self, secrets: &[&str]) {
        let text = self.text();
        for secret in secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret} was logged");
        }
    }
}

#[derive(Clone)]
struct Sink(Buffer);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Records of the `log` crate since its first use here.
fn logged() -> &'static Buffer {
    struct Logger(Buffer);
    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let line = format!("{} {}\n", record.target(), record.args());
            self.0.lock().unwrap().extend_from_slice(line.as_bytes());
        }

        fn flush(&self) {}
    }
    static LOGGED: OnceLock<Buffer> = OnceLock::new();
    LOGGED.get_or_init(|| {
        let buffer = Buffer::default();
        log::set_boxed_logger(Box::new(Logger(Arc::clone(&buffer)))).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        buffer
    })
}
