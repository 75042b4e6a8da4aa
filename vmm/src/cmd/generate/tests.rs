use std::io::Write as _;
use std::process::{Command as Process, Stdio};

use clap::CommandFactory;

use super::*;
use crate::cmd::Cli;

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    completions(Cli::command(), shell, &mut script).unwrap();
    String::from_utf8(script).unwrap()
}

fn page() -> String {
    let mut page = Vec::new();
    manual(Cli::command(), &mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// The names of all subcommands and of their own.
fn names(command: &Command) -> Vec<String> {
    let of = |command: &Command| {
        let mut all = names(command);
        all.push(command.get_name().to_owned());
        all
    };
    command.get_subcommands().flat_map(of).collect()
}

#[test]
fn completions_know_every_verb_and_flag() {
    let names = names(&Cli::command());
    assert!(names.iter().any(|name| name == "add-disk"), "{names:?}");
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let script = script(shell);
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell:?}: {name}");
        }
        for flag in ["kernel", "api-socket", "balloon"] {
            assert!(script.contains(flag), "{shell:?}: {flag}");
        }
    }
}

#[test]
fn bash_accepts_its_completions() {
    let mut bash = Process::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all(script(Shell::Bash).as_bytes()).unwrap();
    drop(stdin);
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn manual_has_a_section_for_every_verb() {
    let page = page();
    assert_eq!(page.matches("\n.TH ").count(), 1);
    for name in names(&Cli::command()) {
        let name = name.replace('-', "\\-");
        let sections = [
            format!("\n.SS \"{name}\"\n"),
            format!("\n.SH \"podvisor {name}\"\n"),
        ];
        assert!(sections.iter().any(|title| page.contains(title)), "{name}");
    }
    for part in [
        "\n.SH NAME\n",
        "\n.SH SYNOPSIS\n",
        "\n.SH OPTIONS\n",
        "Exit status",
    ] {
        assert!(page.contains(part), "{part:?}");
    }
}
