//! `grub.cfg`: what GRUB would boot if nobody touched a key.
//!
//! The configuration is a script. The part of the language that the generators of distributions use is run, within bounds;
//! the disk is never written to, so that a `next_entry` stays until the guest takes it away.

pub(super) mod environment;
mod run;
#[cfg(test)]
mod tests;
mod words;

pub(super) use self::run::{Devices, FilePath, ScriptError, Search};
use self::run::{Entry, Script};

/// What GRUB would boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A kernel.
    Linux(Box<LinuxChoice>),
    /// One of the entries of the Boot Loader Specification, by GRUB's rules.
    Entries(BlsChoice),
}

/// A kernel that an entry of the menu boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinuxChoice {
    /// The entry's title, with those of the submenus that it is in.
    pub(super) title: String,
    pub(super) kernel: FilePath,
    pub(super) initrd: Vec<FilePath>,
    pub(super) cmdline: String,
}

/// What GRUB knows of which entry to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlsChoice {
    /// Index, name or title of the entry; empty for the first.
    pub(super) default: String,
    /// Variables that the entries' options may use.
    pub(super) variables: Vec<(String, String)>,
}

/// Why there is nothing to boot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GrubError {
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("its menu is empty")]
    Empty,
    #[error("its default entry {0:?} boots no Linux kernel")]
    NoLinux(String),
}

/// Runs `text`, the script in the directory `prefix` of `device`, and chooses as GRUB would.
pub(super) fn choose(
    devices: &dyn Devices,
    device: &str,
    prefix: &str,
    text: &[u8],
) -> Result<Choice, GrubError> {
    let mut script = Script::new(devices, device, prefix);
    script.run_text(text)?;
    if script.entries.is_empty() && script.blscfg {
        return Ok(Choice::Entries(BlsChoice {
            default: script.value("default").to_owned(),
            variables: bls_variables(&script),
        }));
    }
    let default = script.value("default").to_owned();
    let mut path = steps(&default);
    path.reverse();
    let mut title = String::new();
    // A script without a menu may boot by itself.
    while !script.entries.is_empty() {
        let wanted = path.pop().unwrap_or_default();
        let entry = pick(&script.entries, &wanted)
            .ok_or(GrubError::Empty)?
            .clone();
        if !title.is_empty() {
            title.push('>');
        }
        title.push_str(&entry.title);
        script.enter(&entry)?;
        if !entry.submenu {
            break;
        }
    }
    if title.is_empty() && script.linux.is_none() {
        return Err(GrubError::Empty);
    }
    let Some((kernel, arguments)) = script.linux else {
        return Err(GrubError::NoLinux(title));
    };
    // GRUB tells the kernel its own name, and quotes what has blanks.
    let mut cmdline = format!("BOOT_IMAGE={}", kernel.path);
    for argument in &arguments {
        cmdline.push(' ');
        cmdline.push_str(&quoted(argument));
    }
    Ok(Choice::Linux(Box::new(LinuxChoice {
        title,
        kernel,
        initrd: script.initrd,
        cmdline,
    })))
}

fn bls_variables(script: &Script<'_>) -> Vec<(String, String)> {
    let names = [
        "kernelopts",
        "default_kernelopts",
        "tuned_params",
        "tuned_initrd",
    ];
    let names = names.into_iter();
    names
        .map(|name| (name.to_owned(), script.value(name).to_owned()))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// The entry that is meant: by its id, its title or its number; else the first.
fn pick<'a>(entries: &'a [Entry], wanted: &str) -> Option<&'a Entry> {
    let named = entries
        .iter()
        .find(|entry| entry.id.as_deref() == Some(wanted) || entry.title == wanted);
    let numbered = || entries.get(wanted.parse::<usize>().ok()?);
    named.or_else(numbered).or(entries.first())
}

/// The steps through submenus: `1>2`, in which `>>` is a `>`.
fn steps(default: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut characters = default.chars().peekable();
    while let Some(character) = characters.next() {
        let doubled = character == '>' && characters.next_if_eq(&'>').is_some();
        if character == '>' && !doubled {
            steps.push(String::new());
        } else if let Some(step) = steps.last_mut() {
            step.push(character);
        }
    }
    steps
}

fn quoted(argument: &str) -> String {
    if argument.contains(' ') {
        format!("\"{argument}\"")
    } else {
        argument.to_owned()
    }
}
