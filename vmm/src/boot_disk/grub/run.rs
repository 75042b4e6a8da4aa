//! Runs a script of GRUB's, as far as what it boots depends on it.
//!
//! Commands that draw, wait, load modules or change the disk do nothing. Those that are not known do nothing either, and fail.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::environment;
use super::words::{self, Block, Part, Statement, Word};

/// Bytes of a script that are read.
const MAX_SCRIPT: u64 = 1 << 20;
/// Commands that are run.
const MAX_STEPS: u32 = 100_000;
/// Functions, scripts and blocks that are run within others.
const MAX_DEPTH: u32 = 32;
/// Bytes that all variables, or the words of one command, may have.
const MAX_TEXT: usize = 1 << 20;
const MAX_ENTRIES: usize = 1024;

/// The disks and files that a script sees.
pub(in crate::boot_disk) trait Devices {
    /// What is in a file, if it is there.
    fn read(&self, device: &str, path: &str, limit: u64) -> Option<Vec<u8>>;
    /// Whether there is a file.
    fn has(&self, device: &str, path: &str) -> bool;
    /// The device whose file system fits.
    fn find(&self, fits: Search<'_>) -> Option<String>;
}

/// What a file system is looked for by.
#[derive(Clone, Copy, Debug)]
pub(in crate::boot_disk) enum Search<'a> {
    Uuid(&'a str),
    Label(&'a str),
    File(&'a str),
}

/// An entry of a menu.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) title: String,
    pub(super) id: Option<String>,
    pub(super) submenu: bool,
    block: Block,
    words: Vec<String>,
}

/// A file by its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::boot_disk) struct FilePath {
    pub(in crate::boot_disk) device: String,
    pub(in crate::boot_disk) path: String,
}

/// Why a script was not run to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::boot_disk) enum ScriptError {
    #[error("it runs more than {MAX_STEPS} commands")]
    Steps,
    #[error("it nests more than {MAX_DEPTH} scripts, functions and menus")]
    Depth,
    #[error(
        "its variables, words or entries have more than {MAX_TEXT} bytes or {MAX_ENTRIES} entries"
    )]
    Text,
}

/// What is known while a script runs.
pub(super) struct Script<'a> {
    devices: &'a dyn Devices,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    pub(super) entries: Vec<Entry>,
    pub(super) linux: Option<(FilePath, Vec<String>)>,
    pub(super) initrd: Vec<FilePath>,
    /// `blscfg` was run: the entries are in files of their own.
    pub(super) blscfg: bool,
    steps: u32,
    depth: u32,
}

/// Whether a command has succeeded.
type Status = Result<bool, ScriptError>;

impl<'a> Script<'a> {
    /// A script on `device` of `devices`, in the directory `prefix`.
    pub(super) fn new(devices: &'a dyn Devices, device: &str, prefix: &str) -> Self {
        let mut script = Self {
            devices,
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
            entries: Vec::new(),
            linux: None,
            initrd: Vec::new(),
            blscfg: false,
            steps: 0,
            depth: 0,
        };
        // What GRUB itself sets on a PC.
        let features = [
            "chainloader_bpb",
            "ntldr",
            "platform_search_hint",
            "default_font_path",
            "all_video_module",
            "menuentry_id",
            "menuentry_options",
            "200_final",
            "nativedisk_cmd",
            "timeout_style",
        ];
        let features = features.map(|name| (format!("feature_{name}"), "y".to_owned()));
        script.variables.extend(features);
        for (name, value) in [
            ("root", device),
            ("prefix", &format!("({device}){prefix}")),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("?", "0"),
        ] {
            script.variables.insert(name.to_owned(), value.to_owned());
        }
        script
    }

    /// The value of a variable; an empty one is as good as none.
    pub(super) fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Runs the text of a script.
    pub(super) fn run_text(&mut self, text: &[u8]) -> Status {
        let block = words::parse(&String::from_utf8_lossy(text));
        self.block(&block)
    }

    /// Runs what an entry stands for; the entries of a submenu replace those there are.
    pub(super) fn enter(&mut self, entry: &Entry) -> Status {
        self.entries.clear();
        self.set("chosen", &entry.title)?;
        let words: Vec<&str> = entry.words.iter().map(String::as_str).collect();
        self.call(&entry.block, &words)
    }

    fn block(&mut self, block: &[Statement]) -> Status {
        let mut status = true;
        for statement in block {
            status = self.statement(statement)?;
            self.set("?", if status { "0" } else { "1" })?;
        }
        Ok(status)
    }

    fn deeper(&mut self, run: impl FnOnce(&mut Self) -> Status) -> Status {
        if self.depth >= MAX_DEPTH {
            return Err(ScriptError::Depth);
        }
        self.depth += 1;
        let status = run(self);
        self.depth -= 1;
        status
    }

    fn statement(&mut self, statement: &Statement) -> Status {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(ScriptError::Steps);
        }
        match statement {
            Statement::Command { words, block } => {
                let words = self.expand(words)?;
                self.command(&words, block.as_ref())
            }
            Statement::If {
                branches,
                otherwise,
            } => {
                for (condition, body) in branches {
                    if self.block(condition)? {
                        return self.block(body);
                    }
                }
                self.block(otherwise)
            }
            Statement::For {
                variable,
                words,
                body,
            } => {
                let mut status = true;
                for word in self.expand(words)? {
                    self.set(variable, &word)?;
                    status = self.block(body)?;
                }
                Ok(status)
            }
            Statement::While => Ok(true),
            Statement::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                Ok(true)
            }
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Status {
        let had = self.value(name).len();
        let text: usize = self.variables.values().map(String::len).sum();
        // Few have more than some dozens of variables, and a script that makes many is ended by its steps.
        if text - had + value.len() > MAX_TEXT || self.variables.len() > MAX_ENTRIES {
            return Err(ScriptError::Text);
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(true)
    }

    /// The words with their variables replaced. What is not quoted falls into words at blanks.
    fn expand(&self, words: &[Word]) -> Result<Vec<String>, ScriptError> {
        let mut expanded = Vec::new();
        let mut text = 0;
        for word in words {
            let mut open: Option<String> = word.quoted.then(String::new);
            for part in &word.parts {
                let (value, splits) = match part {
                    Part::Text(text) => (text.as_str(), false),
                    Part::Variable { name, quoted } => (self.value(name), !quoted),
                };
                text += value.len();
                if text > MAX_TEXT {
                    return Err(ScriptError::Text);
                }
                if !splits {
                    open.get_or_insert_default().push_str(value);
                    continue;
                }
                for (index, piece) in value.split([' ', '\t', '\n']).enumerate() {
                    if index > 0 {
                        expanded.extend(open.take());
                    }
                    if !piece.is_empty() {
                        open.get_or_insert_default().push_str(piece);
                    }
                }
            }
            expanded.extend(open);
        }
        Ok(expanded)
    }

    fn command(&mut self, words: &[String], block: Option<&Block>) -> Status {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((name, rest)) = words.split_first() else {
            return Ok(true);
        };
        // `name=value` without `set`.
        if let Some((variable, value)) = name.split_once('=')
            && !variable.is_empty()
            && variable.chars().all(words::is_name)
        {
            return self.set(variable, value);
        }
        match *name {
            "menuentry" | "submenu" => self.add_entry(*name == "submenu", rest, block),
            "set" => {
                for word in rest {
                    if let Some((name, value)) = word.split_once('=') {
                        self.set(name, value)?;
                    }
                }
                Ok(true)
            }
            "unset" => {
                for name in rest {
                    self.variables.remove(*name);
                }
                Ok(true)
            }
            "[" => {
                let rest = rest.strip_suffix(&["]"]).unwrap_or(rest);
                Ok(self.test(rest))
            }
            "test" => Ok(self.test(rest)),
            "load_env" => self.load_env(rest),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                self.search(name, rest)
            }
            "source" | "." | "configfile" => self.source(*name == "configfile", rest),
            "linux" | "linux16" | "linuxefi" => {
                let Some((path, arguments)) = rest.split_first() else {
                    return Ok(false);
                };
                let arguments = arguments.iter().map(|word| (*word).to_owned());
                self.linux = Some((self.file(path), arguments.collect()));
                self.initrd.clear();
                Ok(true)
            }
            "initrd" | "initrd16" | "initrdefi" => {
                self.initrd = rest.iter().map(|path| self.file(path)).collect();
                Ok(true)
            }
            "blscfg" => {
                self.blscfg = true;
                Ok(true)
            }
            "false" => Ok(false),
            "true" | ":" | "insmod" | "export" | "save_env" | "echo" | "terminal_output"
            | "terminal_input" | "serial" | "play" | "sleep" | "clear" | "normal" | "boot" => {
                Ok(true)
            }
            name => match self.functions.get(name).cloned() {
                Some(body) => self.call(&body, rest),
                None => Ok(false),
            },
        }
    }

    /// Runs a function or an entry with words for `$1` and the following.
    fn call(&mut self, body: &Block, words: &[&str]) -> Status {
        for (number, word) in (1..10).zip(words) {
            self.set(&number.to_string(), word)?;
        }
        self.deeper(|script| script.block(body))
    }

    fn add_entry(&mut self, submenu: bool, words: &[&str], block: Option<&Block>) -> Status {
        let (mut title, mut id, mut others) = (None, None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--id" => id = words.next().map(|id| (*id).to_owned()),
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                "--unrestricted" => {}
                word if word.starts_with("--id=") => id = Some(word["--id=".len()..].to_owned()),
                word if word.starts_with("--") => {}
                // `$menuentry_id_option` is replaced by `--id` where GRUB knows that.
                word if title.is_none() => title = Some(word.to_owned()),
                word => others.push(word.to_owned()),
            }
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(ScriptError::Text);
        }
        let title = title.unwrap_or_default();
        self.entries.push(Entry {
            words: std::iter::once(title.clone()).chain(others).collect(),
            title,
            id,
            submenu,
            block: block.cloned().unwrap_or_default(),
        });
        Ok(true)
    }

    fn test(&self, words: &[&str]) -> bool {
        // `-o` binds less than `-a`, which binds less than `!`.
        words.split(|word| *word == "-o").any(|all| {
            all.split(|word| *word == "-a")
                .all(|words| self.simple_test(words))
        })
    }

    fn simple_test(&self, words: &[&str]) -> bool {
        let number = |word: &str| word.parse::<i64>().unwrap_or(0);
        match words {
            ["!", rest @ ..] => !self.simple_test(rest),
            ["(", rest @ .., ")"] => self.test(rest),
            [] | [""] => false,
            [_] => true,
            ["-n", word] => !word.is_empty(),
            ["-z", word] => word.is_empty(),
            ["-e" | "-f", path] => {
                let FilePath { device, path } = self.file(path);
                self.devices.has(&device, &path)
            }
            ["-s", path] => {
                let FilePath { device, path } = self.file(path);
                let bytes = self.devices.read(&device, &path, MAX_SCRIPT);
                bytes.is_some_and(|bytes| !bytes.is_empty())
            }
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-ge", b] => number(a) >= number(b),
            _ => false,
        }
    }

    /// A path as GRUB reads it: `(device)/path`, or `/path` on the device that `$root` names.
    fn file(&self, path: &str) -> FilePath {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')').unwrap_or((rest, "")),
            None => (self.value("root"), path),
        };
        FilePath {
            device: device.to_owned(),
            path: format!("/{}", path.trim_start_matches('/')),
        }
    }

    fn load_env(&mut self, words: &[&str]) -> Status {
        let (mut path, mut only) = (None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "-f" | "--file" => path = words.next().map(|path| (*path).to_owned()),
                word if word.starts_with("--file=") => {
                    path = Some(word["--file=".len()..].to_owned());
                }
                word if word.starts_with('-') => {}
                name => only.push(name),
            }
        }
        let path = path.unwrap_or_else(|| format!("{}/grubenv", self.value("prefix")));
        let FilePath { device, path } = self.file(&path);
        let Some(bytes) = self.devices.read(&device, &path, environment::MAX_LEN) else {
            return Ok(false);
        };
        for (name, value) in environment::parse(&bytes) {
            if only.is_empty() || only.contains(&name.as_str()) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    fn search(&mut self, command: &str, words: &[&str]) -> Status {
        let mut kind = match command {
            "search.fs_uuid" => Some("uuid"),
            "search.fs_label" => Some("label"),
            "search.file" => Some("file"),
            _ => None,
        };
        let (mut variable, mut names) = ("root", Vec::new());
        let mut rest = words.iter().copied().peekable();
        while let Some(word) = rest.next() {
            match word {
                "--fs-uuid" | "-u" => kind = Some("uuid"),
                "--label" | "-l" => kind = Some("label"),
                "--file" | "-f" => kind = Some("file"),
                "--set" | "-s" => variable = rest.next_if(|next| *next == "root").unwrap_or("root"),
                "--hint" => drop(rest.next()),
                word if word.starts_with("--set=") => variable = &word["--set=".len()..],
                word if word.starts_with('-') => {}
                name => names.push(name),
            }
        }
        let Some(name) = names.first() else {
            return Ok(false);
        };
        if kind.is_some_and(|_| command != "search")
            && let Some(second) = names.get(1)
        {
            variable = second;
        }
        let found = self.devices.find(match kind {
            Some("uuid") => Search::Uuid(name),
            Some("file") => Search::File(name),
            _ => Search::Label(name),
        });
        match found {
            Some(device) => self.set(variable, &device),
            None => Ok(false),
        }
    }

    /// Runs another script; `afresh`, its menu takes the place of what there is.
    fn source(&mut self, afresh: bool, words: &[&str]) -> Status {
        let Some(path) = words.first() else {
            return Ok(false);
        };
        let FilePath { device, path } = self.file(path);
        let Some(text) = self.devices.read(&device, &path, MAX_SCRIPT) else {
            return Ok(false);
        };
        if afresh {
            self.entries.clear();
        }
        self.deeper(|script| script.run_text(&text))
    }
}
