//! The program under test, with an environment that contains only the test's own variables.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{directory, eventually, script, session};

/// The program under test: the one that cargo built beside the tests, or `HARPOON_BIN`, such as a release build.
pub fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        std::env::var("HARPOON_BIN").unwrap_or(env!("CARGO_BIN_EXE_harpoon").to_owned())
    });
    &PROGRAM
}

/// The configuration of a run. The program gets a new empty home, which is its working directory too, `PATH` and nothing else.
#[derive(Debug, Clone)]
pub struct Harpoon {
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    pod: Option<Vec<OsString>>,
    wrapper: Vec<OsString>,
    terminal: Terminal,
    limit: Duration,
    home: Arc<tempfile::TempDir>,
}

/// The streams of the program that are a terminal, of 100 columns and 30 lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// Neither: both are pipes.
    None,
    /// Standard error; [`Output::stderr`] is the terminal's content.
    Stderr,
    /// Both; [`Output::stdout`] is the terminal's content for both, and [`Output::stderr`] is empty.
    Both,
}

impl Harpoon {
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(arguments: I) -> Self {
        Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            variables: Vec::new(),
            pod: None,
            wrapper: Vec::new(),
            terminal: Terminal::None,
            limit: Duration::from_secs(60),
            home: Arc::new(directory()),
        }
    }

    pub fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn arg(self, argument: impl Into<OsString>) -> Self {
        self.args([argument])
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.variables.extend(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        self
    }

    /// Its home and working directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs it in a private copy of this machine's file tree, with an empty `/run` and hardly a device (`testbed/pod`).
    pub fn pod(mut self) -> Self {
        self.pod.get_or_insert_default();
        self
    }

    /// Makes a file, directory or socket available at `target`; in a pod.
    pub fn bind(self, path: impl AsRef<Path>, target: &str) -> Self {
        let bind = format!("{}:{target}", path.as_ref().display());
        self.in_pod("--bind", bind)
    }

    /// Makes an empty file available at `target`; in a pod.
    pub fn empty_file(self, target: &str) -> Self {
        self.in_pod("--file", target.to_owned())
    }

    /// Runs it by a program (inside the pod, if there is one) that takes its command line as further arguments, such as `["sh", "-c", "exec \"$@\" >&-", "sh"]`.
    pub fn under<I: IntoIterator<Item: Into<OsString>>>(mut self, wrapper: I) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Runs it with a terminal, of the type `xterm` unless a variable `TERM` is given.
    pub fn terminal(mut self, terminal: Terminal) -> Self {
        self.terminal = terminal;
        self
    }

    /// Time limit, after which it is killed and the test fails; default: 60 s.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.start().wait()
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&self) -> Running {
        let mut command = self.command();
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.home())
            // As on a node where containerd's directory is not mounted; the tests of fast fill set it.
            .env("FILL", "runtime");
        if self.terminal != Terminal::None {
            command.env("TERM", "xterm");
        }
        command
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install"));
        let streams = [
            Stream::read(child.stdout.take().unwrap()),
            Stream::read(child.stderr.take().unwrap()),
        ];
        let watch = Arc::new(Watch::default());
        watch.pid.store(child.id().into(), Ordering::Relaxed);
        if self.terminal != Terminal::None {
            watch
                .pid
                .store(self.pid_in_terminal(&mut child), Ordering::Relaxed);
        }
        let (shared, limit) = (Arc::clone(&watch), self.limit);
        let watcher = std::thread::spawn(move || shared.until_end(child, started, limit));
        Running {
            harpoon: self.clone(),
            watch,
            streams,
            watcher: Some(watcher),
        }
    }

    fn in_pod(mut self, option: &str, value: String) -> Self {
        self.pod
            .get_or_insert_default()
            .extend([option.into(), value.into()]);
        self
    }

    fn command(&self) -> Command {
        let mut line = Vec::new();
        if let Some(options) = &self.pod {
            line.push(script("pod").get_program().into());
            line.extend([
                "--share".into(),
                session().into(),
                "--bind".into(),
                format!("{0}:{0}", program()).into(),
            ]);
            line.extend(options.iter().cloned());
        }
        line.extend(self.wrapper.iter().cloned());
        line.push(program().into());
        line.extend(self.arguments.iter().cloned());
        if self.terminal == Terminal::None {
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]);
            return command;
        }
        let redirect = if self.terminal == Terminal::Stderr {
            ">.stdout"
        } else {
            ""
        };
        let line: Vec<String> = line
            .iter()
            .map(|word| quote(word.to_str().unwrap()))
            .collect();
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command"]);
        command.arg(format!(
            "stty cols 100 rows 30; echo $$ >.pid.new; mv .pid.new .pid; exec {} {redirect}",
            line.join(" ")
        ));
        command.arg("/dev/null");
        command
    }

    /// With `script` the program is a grandchild, which writes its process ID to a file.
    #[track_caller]
    fn pid_in_terminal(&self, child: &mut Child) -> u64 {
        let (file, mut pid) = (self.home().join(".pid"), None);
        eventually(
            "the program starts in its terminal",
            Duration::from_secs(20),
            || {
                pid = std::fs::read_to_string(&file)
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
                pid.is_some() || child.try_wait().unwrap().is_some()
            },
        );
        let _ = std::fs::remove_file(file);
        pid.expect("the program starts in its terminal")
    }
}

/// A run in progress or with an unread result. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    harpoon: Harpoon,
    watch: Arc<Watch>,
    streams: [Stream; 2],
    watcher: Option<JoinHandle<Ended>>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.watch.pid.load(Ordering::Relaxed).try_into().unwrap()
    }

    /// Sends it a signal, such as [`Signal::TERM`].
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(pid_of(self.pid().into()), signal)
            .unwrap_or_else(|e| panic!("{signal:?}: {e}: {}", self.stderr()));
    }

    /// The same for a program that may be ending by itself.
    pub fn try_signal(&self, signal: Signal) {
        if !self.has_ended() {
            let _ = kill_process(pid_of(self.pid().into()), signal);
        }
    }

    /// Its output so far.
    pub fn stdout(&self) -> String {
        self.streams[0].text()
    }

    /// Its output so far.
    pub fn stderr(&self) -> String {
        self.streams[1].text()
    }

    /// Waits until its standard error contains `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.stderr().contains(text) {
            let over =
                Instant::now() >= end || self.watcher.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(
                !over,
                "no {text:?} within {limit:?}:\n{}\n{}",
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn has_ended(&self) -> bool {
        self.watcher.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until it ends; panics if it has to be killed at its time limit.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let ended = self.watcher.take().unwrap().join().unwrap();
        for stream in &mut self.streams {
            stream.finish();
        }
        let (mut stdout, mut stderr) = (self.stdout(), self.stderr());
        if self.harpoon.terminal == Terminal::Stderr {
            stderr = std::mem::replace(
                &mut stdout,
                std::fs::read_to_string(self.harpoon.home().join(".stdout")).unwrap(),
            );
        }
        let (code, signal) = (ended.status.code(), ended.status.signal());
        let elapsed = ended.elapsed;
        let [peak_rss, peak_anonymous] = [&self.watch.peak_rss, &self.watch.peak_anonymous]
            .map(|peak| peak.load(Ordering::Relaxed));
        let arguments = self.harpoon.arguments.clone();
        let output = Output {
            stdout,
            stderr,
            code,
            signal,
            elapsed,
            peak_rss,
            peak_anonymous,
            arguments,
            home: Arc::clone(&self.harpoon.home),
        };
        assert!(
            !ended.killed,
            "killed after {:?}: {output}",
            self.harpoon.limit
        );
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch.give_up.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub elapsed: Duration,
    /// Bytes; sampled every 2 ms, and 0 for a run that was over before the first sample.
    pub peak_rss: u64,
    /// The same without what is mapped from files: the program's code and libraries.
    pub peak_anonymous: u64,
    arguments: Vec<OsString>,
    home: Arc<tempfile::TempDir>,
}

impl Output {
    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON: {e}: {self}"))
    }

    /// Fails the test and shows the whole output, unless the program exited with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(self.code == Some(code), "exit code {code} expected: {self}");
        self
    }

    /// The same for a standard output that is too long to show.
    #[track_caller]
    pub fn expect_quietly(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "exit code {code} expected, not {:?}: {}",
            self.code,
            self.stderr
        );
        self
    }

    /// Its former home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stdout,
            stderr,
            code,
            signal,
            elapsed,
            arguments,
            ..
        } = self;
        writeln!(
            f,
            "harpoon {arguments:?}: exit code {code:?}, signal {signal:?}, {elapsed:.3?}"
        )?;
        write!(
            f,
            "--- standard output\n{stdout}\n--- standard error\n{stderr}\n---"
        )
    }
}

#[derive(Debug, Default)]
struct Watch {
    pid: AtomicU64,
    peak_rss: AtomicU64,
    peak_anonymous: AtomicU64,
    give_up: AtomicBool,
}

struct Ended {
    status: ExitStatus,
    elapsed: Duration,
    killed: bool,
}

impl Watch {
    fn until_end(&self, mut child: Child, started: Instant, limit: Duration) -> Ended {
        let pid = self.pid.load(Ordering::Relaxed);
        let mut killed = false;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Ended {
                    status,
                    elapsed: started.elapsed(),
                    killed,
                };
            }
            if !killed && (self.give_up.load(Ordering::Relaxed) || started.elapsed() > limit) {
                killed = true;
                let _ = kill_process(pid_of(pid), Signal::KILL);
                let _ = child.kill();
            }
            if let Some((rss, anonymous)) = memory(pid) {
                self.peak_rss.fetch_max(rss, Ordering::Relaxed);
                self.peak_anonymous.fetch_max(anonymous, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A stream of the program, read as it is written.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the pipe's end, but not long: a process that outlived the program may hold it open.
    fn finish(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        while !self.reader.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The most memory that the process had resident since it became the program, and what it has now that is not mapped
/// from files; none while it still is a shell.
fn memory(pid: u64) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let bytes = |name: &str| {
        let kibibytes: u64 = field(name)?.strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    let anonymous = bytes("RssAnon:")? + bytes("RssShmem:")?;
    (field("Name:") == Some("harpoon")).then_some((bytes("VmHWM:")?, anonymous))
}

fn pid_of(pid: u64) -> Pid {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id")
}

/// Quotes a word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
