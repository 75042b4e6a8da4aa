//! `podvisor completions` and `podvisor man`: what shells and readers need to know of the command line, made from it.

use std::io::{self, Write};

use clap::{Arg, Command, ValueEnum};
use clap_complete::shells;
use clap_mangen::Man;

const NAME: &str = "podvisor";

/// A shell that completes what is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// Source it, or put it in /usr/share/bash-completion/completions
    Bash,
    /// Put it in ~/.config/fish/completions
    Fish,
    /// Put it as _podvisor in a directory of $fpath
    Zsh,
}

/// Writes the completions of `command` for `shell`.
pub(super) fn completions(
    mut command: Command,
    shell: Shell,
    output: &mut impl Write,
) -> io::Result<()> {
    // Its writer panics when it cannot write.
    let mut script = Vec::new();
    match shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, NAME, &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, NAME, &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, NAME, &mut script),
    }
    output.write_all(&script)
}

/// Writes the manual page of `command` and of all its subcommands, for `man -l`.
pub(super) fn manual(command: Command, output: &mut impl Write) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let page = Man::new(command.clone()).manual("Podvisor");
    page.render_title(output)?;
    page.render_name_section(output)?;
    page.render_synopsis_section(output)?;
    page.render_description_section(output)?;
    page.render_options_section(output)?;
    for subcommand in command.get_subcommands() {
        section(subcommand, output)?;
    }
    heading("SH", "NOTES", output)?;
    without_headings(output, |text| page.render_extra_section(text))?;
    page.render_version_section(output)
}

/// A section of a subcommand, with a subsection for each of its own.
fn section(command: &Command, output: &mut impl Write) -> io::Result<()> {
    heading("SH", &format!("podvisor {}", command.get_name()), output)?;
    body(command, |arg| arg.get_id() == "help", output)?;
    for verb in command.get_subcommands() {
        heading("SS", verb.get_name(), output)?;
        let is_told_before = |arg: &Arg| arg.get_id() == "help" || arg.is_global_set();
        body(verb, is_told_before, output)?;
    }
    Ok(())
}

fn body(
    command: &Command,
    is_told_before: impl Fn(&Arg) -> bool,
    output: &mut impl Write,
) -> io::Result<()> {
    let command = command.clone().mut_args(|arg| {
        let hidden = arg.is_hide_set() || is_told_before(&arg);
        arg.hide(hidden)
    });
    let page = Man::new(command.clone());
    without_headings(output, |text| page.render_synopsis_section(text))?;
    writeln!(output, ".PP")?;
    without_headings(output, |text| page.render_description_section(text))?;
    without_headings(output, |text| page.render_options_section(text))?;
    if command.get_after_help().is_some() {
        writeln!(output, ".PP")?;
        without_headings(output, |text| page.render_extra_section(text))?;
    }
    Ok(())
}

fn heading(request: &str, text: &str, output: &mut impl Write) -> io::Result<()> {
    writeln!(output, ".{request} \"{}\"", text.replace('-', "\\-"))
}

/// Writes a section of a page without its heading: it becomes part of another section.
fn without_headings(
    output: &mut impl Write,
    render: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut text = Vec::new();
    render(&mut text)?;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        if !line.starts_with(b".SH ") {
            output.write_all(line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
