//! Logs: one line per event, on stderr or in a file, stamped with the time since the process started.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be opened for appending.
    #[error("--log-file: cannot open {}", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Microseconds since the process started, so that lines can be compared with boot marks.
struct Uptime(Instant);

impl FormatTime for Uptime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let elapsed = self.0.elapsed();
        write!(
            writer,
            "[{:>5}.{:06}]",
            elapsed.as_secs(),
            elapsed.subsec_micros()
        )
    }
}

/// Starts logging for the process. `verbosity` is the number of `-v`: warnings, then information, debug, trace.
///
/// # Errors
///
/// [`LogError`] if the file cannot be opened.
pub fn start(started: Instant, verbosity: u8, file: Option<&Path>) -> Result<(), LogError> {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // The guest can have the crate for image formats say something as often as it likes. The disk itself tells of errors.
    let formats = if verbosity > 1 {
        level
    } else {
        LevelFilter::OFF
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(format!("{level},imago={formats}"))
        .with_timer(Uptime(started))
        .with_target(verbosity > 1)
        .with_thread_names(verbosity > 1);
    match file {
        Some(path) => lines
            .with_ansi(false)
            .with_writer(Mutex::new(open(path)?))
            .init(),
        None => lines
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .init(),
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| LogError::Open {
            path: path.to_owned(),
            source,
        })
}
