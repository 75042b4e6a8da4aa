//! The shape of the workspace: who depends on whom, and how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The longest source file, in lines. Files are around 300 and rarely over 500.
const LONGEST: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// For each crate of the workspace, the crates of the workspace that it depends on, for tests or otherwise.
fn graph() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<_> = packages.iter().map(name).collect();
    Ok(packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().into_iter().flatten();
            (
                name(package),
                dependencies
                    .map(name)
                    .filter(|other| ours.contains(other) && *other != name(package))
                    .collect(),
            )
        })
        .collect())
}

#[test]
fn api_arch_and_devices_depend_on_nothing_of_ours() -> Result<()> {
    let graph = graph()?;
    for room in ["api", "arch", "devices"] {
        let dependencies = graph
            .get(room)
            .with_context(|| format!("no crate {room}"))?;
        assert!(
            dependencies.is_empty(),
            "{room} depends on {dependencies:?}"
        );
    }
    Ok(())
}

#[test]
fn vmm_alone_joins_the_rooms() -> Result<()> {
    let graph = graph()?;
    let joined: BTreeSet<_> = ["api", "arch", "devices"].map(str::to_owned).into();
    assert_eq!(graph["vmm"], joined);
    for (name, dependencies) in graph.iter().filter(|(name, _)| *name != "vmm") {
        let inside: Vec<_> = dependencies
            .intersection(&joined)
            .filter(|other| *other != "api")
            .collect();
        assert!(inside.is_empty(), "{name} depends on {inside:?}");
    }
    Ok(())
}

#[test]
fn kvm_ioctls_are_done_by_vmm_alone() -> Result<()> {
    for room in ["api", "arch", "devices"] {
        let manifest = fs::read_to_string(root().join(room).join("Cargo.toml"))?;
        assert!(
            !manifest.contains("kvm-ioctls"),
            "{room} depends on kvm-ioctls"
        );
    }
    Ok(())
}

#[test]
fn source_files_are_read_in_one_sitting() -> Result<()> {
    let mut long = Vec::new();
    for room in ["api", "arch", "devices", "vmm", "tests"] {
        walk(&root().join(room), &mut |path| {
            let lines = fs::read_to_string(path)?.lines().count();
            if lines > LONGEST {
                long.push(format!("{}: {lines} lines", path.display()));
            }
            Ok(())
        })?;
    }
    assert!(long.is_empty(), "longer than {LONGEST} lines: {long:#?}");
    Ok(())
}

#[test]
fn no_type_is_called_by_what_it_is_not() -> Result<()> {
    let mut found = Vec::new();
    for room in ["api", "arch", "devices", "vmm", "tests"] {
        walk(&root().join(room), &mut |path| {
            for line in fs::read_to_string(path)?.lines() {
                let declared = ["struct ", "enum ", "trait ", "type "]
                    .iter()
                    .find_map(|word| {
                        let rest = line
                            .trim_start()
                            .trim_start_matches("pub ")
                            .trim_start_matches("pub(crate) ");
                        rest.strip_prefix(word)
                    });
                let Some(declared) = declared else { continue };
                let name: String = declared
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if ["Manager", "Helper", "Util", "Common"]
                    .iter()
                    .any(|end| name.ends_with(end))
                {
                    found.push(format!("{}: {name}", path.display()));
                }
            }
            Ok(())
        })?;
    }
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, visit)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path)?;
        }
    }
    Ok(())
}
