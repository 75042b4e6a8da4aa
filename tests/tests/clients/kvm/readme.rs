//! The README's examples of the API, run as they stand there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{env, iter};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tests::api::Api;
use tests::assets;
use tests::tiny::Program;

/// The blocks of commands in the README's section on the API.
fn blocks() -> Result<Vec<String>> {
    let readme = fs::read_to_string(assets::ours("../README.md"))?;
    let (_, section) = readme
        .split_once("\n## The API\n")
        .context("the README has no section on the API")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1);
    blocks
        .map(|block| {
            let (block, _) = block.split_once("```").context("a block has no end")?;
            Ok(block.to_owned())
        })
        .collect()
}

/// A directory with all files that the examples name, and `podvisor` where a shell finds it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        fs::write(at("vmlinuz"), Program::new().print("up\n").elf())?;
        fs::write(at("initrd.img"), [0; 512])?;
        for disk in ["debian.img", "data.img"] {
            File::create(at(disk))?.set_len(1 << 20)?;
        }
        fs::create_dir(at("bin"))?;
        symlink(fs::canonicalize(assets::podvisor()?)?, at("bin/podvisor"))?;
        // A call that is refused fails the command.
        fs::write(
            at(".curlrc"),
            "fail-with-body\nsilent\nshow-error\nmax-time = 60\n",
        )?;
        Ok(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A shell that runs `commands` until one fails.
    fn shell(&self, commands: &str) -> Result<Command> {
        let found = env::var_os("PATH").unwrap_or_default();
        let paths: OsString =
            env::join_paths(iter::once(self.path().join("bin")).chain(env::split_paths(&found)))?;
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", commands])
            .current_dir(self.path())
            .env("PATH", paths)
            .env("CURL_HOME", self.path());
        Ok(shell)
    }

    fn run(&self, commands: &str) -> Result<String> {
        let output = self.shell(commands)?.output()?;
        ensure!(
            output.status.success(),
            "{commands}\n{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and that is the wish.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn examples_of_the_readme_work_as_they_stand() -> Result<()> {
    let blocks = blocks()?;
    let [start, create, change, control] = blocks.as_slice() else {
        panic!("the examples are others than they were: {blocks:?}");
    };
    let place = Place::new()?;
    let mut vmm = place.shell(&format!("exec {start}"))?;
    let mut vmm = Ending(vmm.stdin(Stdio::null()).spawn()?);
    let api = Api::new(&place.path().join("api.sock"));
    api.wait()?;

    let told = place.run(create)?;
    assert!(told.contains("\"state\":\"Running\""), "{told}");
    let told = place.run(change)?;
    for part in ["\"bdf\":\"0000:00:", "\"id\":\"data\"", "# EOF\n"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let told = place.run(control)?;
    assert!(told.contains("state      running"), "{told}");
    assert_eq!(vmm.0.wait()?.code(), Some(0));
    assert!(place.path().join("console.log").is_file());
    Ok(())
}
