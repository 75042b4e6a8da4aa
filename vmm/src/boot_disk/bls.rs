//! Boot entries in files of their own: the Boot Loader Specification's type 1, as systemd-boot and GRUB order them.

use std::cmp::Ordering;

use super::filesystem::{FileSystem, join};
use super::version;

/// Bytes of an entry or of `loader.conf` that are read.
const MAX_FILE: u64 = 64 << 10;
/// Initial RAM disks of one entry.
const MAX_INITRD: usize = 32;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BlsEntry {
    /// Name of its file without `.conf` and without the count of tries.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) version: String,
    pub(super) machine_id: String,
    pub(super) sort_key: String,
    /// Paths on the file system that the entry is on.
    pub(super) linux: String,
    pub(super) initrd: Vec<String>,
    pub(super) options: Vec<String>,
    /// Tries that are left, if they are counted; 0 for an entry that never came up.
    pub(super) tries_left: Option<u32>,
    pub(super) tries_done: u32,
}

impl BlsEntry {
    /// The entry in `text`, whose file is `name`; None if it boots no Linux kernel of this architecture.
    pub(super) fn parse(name: &str, text: &str) -> Option<Self> {
        let mut entry = Self::named(name)?;
        let mut architecture = String::new();
        for (key, value) in lines(text) {
            match key {
                "title" => entry.title = value.to_owned(),
                "version" => entry.version = value.to_owned(),
                "machine-id" => entry.machine_id = value.to_owned(),
                "sort-key" => entry.sort_key = value.to_owned(),
                "linux" => entry.linux = value.to_owned(),
                // GRUB takes several in one line.
                "initrd" => {
                    let left = MAX_INITRD.saturating_sub(entry.initrd.len());
                    let paths = value.split_whitespace().take(left);
                    entry.initrd.extend(paths.map(str::to_owned));
                }
                "options" => entry.options.push(value.to_owned()),
                "architecture" => architecture = value.to_ascii_lowercase(),
                _ => {}
            }
        }
        let ours = matches!(architecture.as_str(), "" | "x64" | "x86_64" | "x86-64");
        (ours && !entry.linux.is_empty()).then_some(entry)
    }

    /// An entry with what its file's name tells: `NAME.conf`, `NAME+LEFT.conf` or `NAME+LEFT-DONE.conf`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (stem, _) = name
            .split_once(".conf")
            .filter(|(_, rest)| rest.is_empty())
            .or_else(|| name.split_once(".efi").filter(|(_, rest)| rest.is_empty()))?;
        let mut entry = Self {
            id: stem.to_owned(),
            ..Self::default()
        };
        if let Some((id, counts)) = stem.rsplit_once('+') {
            let (left, done) = counts.split_once('-').unwrap_or((counts, "0"));
            if let (Ok(left), Ok(done)) = (left.parse(), done.parse()) {
                entry.id = id.to_owned();
                (entry.tries_left, entry.tries_done) = (Some(left), done);
            }
        }
        Some(entry)
    }

    /// What a person would know it by.
    pub(super) fn name(&self) -> &str {
        if self.title.is_empty() {
            &self.id
        } else {
            &self.title
        }
    }

    /// The command line, with the variables that GRUB knows in the place of their names. One that is not known is nothing,
    /// but for `$kernelopts`, which may be known by another name.
    pub(super) fn cmdline(&self, variables: &[(String, String)]) -> String {
        expand(&self.options.join(" "), variables)
    }

    fn is_bad(&self) -> bool {
        self.tries_left == Some(0)
    }
}

/// Replaces `$name` and `${name}`.
pub(super) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let value = |name: &str| {
        let of = |name: &str| {
            let known = variables.iter().find(|(known, _)| known == name);
            known.map(|(_, value)| value.as_str())
        };
        let fallback = (name == "kernelopts").then(|| of("default_kernelopts"));
        of(name).or(fallback.flatten()).unwrap_or_default()
    };
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let (name, next) = match after
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'))
        {
            Some(braced) => braced,
            None => after.split_at(after.bytes().take_while(is_name).count()),
        };
        if name.is_empty() {
            expanded.push('$');
        }
        expanded.push_str(value(name));
        rest = next;
    }
    expanded.push_str(rest);
    let words: Vec<&str> = expanded.split_whitespace().collect();
    words.join(" ")
}

/// Keys and values of a file; neither comments nor lines without a value.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once([' ', '\t']))
        .map(|(key, value)| (key, value.trim()))
}

/// The entries in `directory` of `filesystem`, in no order.
pub(super) fn read(filesystem: &FileSystem, directory: &str) -> Vec<BlsEntry> {
    let names = filesystem.list(directory);
    let names = names.iter().filter(|name| name.ends_with(".conf"));
    names
        .filter_map(|name| {
            let bytes = filesystem.read(&join(directory, name), MAX_FILE).ok()?;
            BlsEntry::parse(name, &String::from_utf8_lossy(&bytes))
        })
        .collect()
}

/// The value of `default` in `loader.conf`, if there is one.
pub(super) fn default_pattern(filesystem: &FileSystem) -> Option<String> {
    let bytes = filesystem.read("/loader/loader.conf", MAX_FILE).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    lines(&text)
        .filter(|(key, _)| *key == "default")
        .last()
        .map(|(_, value)| value.to_owned())
}

/// The order of systemd-boot: the first is booted unless another is asked for.
pub(super) fn specified_order(a: &BlsEntry, b: &BlsEntry) -> Ordering {
    let keyed = |entry: &BlsEntry| entry.sort_key.is_empty();
    let by_key = || {
        a.sort_key
            .cmp(&b.sort_key)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| version::compare(&b.version, &a.version))
    };
    a.is_bad()
        .cmp(&b.is_bad())
        .then_with(|| keyed(a).cmp(&keyed(b)))
        .then_with(|| if keyed(a) { Ordering::Equal } else { by_key() })
        .then_with(|| version::compare(&b.id, &a.id))
        .then_with(|| {
            b.tries_left
                .unwrap_or(u32::MAX)
                .cmp(&a.tries_left.unwrap_or(u32::MAX))
        })
        .then_with(|| a.tries_done.cmp(&b.tries_done))
}

/// The order of GRUB's `blscfg`: by the names of the files alone, the newest first.
pub(super) fn grub_order(a: &BlsEntry, b: &BlsEntry) -> Ordering {
    version::compare(&b.id, &a.id)
}

/// The entry that `pattern` of `loader.conf` asks for, else the first.
pub(super) fn pick<'a>(entries: &'a [BlsEntry], pattern: Option<&str>) -> Option<&'a BlsEntry> {
    let fits = |entry: &&BlsEntry| {
        pattern.is_some_and(|pattern| {
            let names = [
                format!("{}.conf", entry.id),
                format!("{}.efi", entry.id),
                entry.id.clone(),
            ];
            let (pattern, budget) = (pattern.to_ascii_lowercase(), &mut 10_000);
            names
                .iter()
                .any(|name| matches(&pattern, &name.to_ascii_lowercase(), budget))
        })
    };
    // What has used up its tries is not taken because of its name.
    let fits = |entry: &&BlsEntry| !entry.is_bad() && fits(entry);
    entries.iter().find(fits).or(entries.first())
}

/// The entry that GRUB's variable `default` asks for: by id, title or number; else the first.
pub(super) fn pick_for_grub<'a>(entries: &'a [BlsEntry], default: &str) -> Option<&'a BlsEntry> {
    let id = default.strip_suffix(".conf").unwrap_or(default);
    let named = entries
        .iter()
        .find(|entry| entry.id == id || (!default.is_empty() && entry.title == default));
    let numbered = || entries.get(default.parse::<usize>().ok()?);
    named.or_else(numbered).or(entries.first())
}

/// Whether `text` fits a pattern with `*`, `?` and `[...]`; not, if that takes more than `budget` steps.
fn matches(pattern: &str, text: &str, budget: &mut u32) -> bool {
    let Some(left) = budget.checked_sub(1) else {
        return false;
    };
    *budget = left;
    let mut characters = pattern.chars();
    match characters.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = characters.as_str();
            let ends = text.char_indices().map(|(at, _)| at);
            ends.chain([text.len()])
                .any(|at| matches(rest, &text[at..], budget))
        }
        Some(first) => {
            let mut text = text.chars();
            let Some(character) = text.next() else {
                return false;
            };
            let class = (first == '[').then(|| characters.as_str().split_once(']'));
            let (fits, rest) = match class.flatten() {
                Some((class, rest)) => (in_class(class, character), rest),
                None => (first == '?' || first == character, characters.as_str()),
            };
            fits && matches(rest, text.as_str(), budget)
        }
    }
}

fn in_class(class: &str, character: char) -> bool {
    let (negated, class) = match class.strip_prefix(['!', '^']) {
        Some(rest) => (true, rest),
        None => (false, class),
    };
    let class: Vec<char> = class.chars().collect();
    let range = class
        .windows(3)
        .any(|three| three[1] == '-' && (three[0]..=three[2]).contains(&character));
    (range || class.contains(&character)) != negated
}

#[cfg(test)]
#[path = "bls/tests.rs"]
mod tests;
