//! The test suites that come from crates.io: pinned versions, built once into `target/tools` of the checkout.

use crate::steps::{Step, cargo, run, top};
use std::path::PathBuf;

/// Package and version.
const TOOLS: &[(&str, &str)] = &[("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Where they are, whatever folder cargo builds the project in: the tests look here.
fn root() -> PathBuf {
    top().join("target/tools")
}

/// Installs what is not there in its version.
pub(crate) fn install() -> Step {
    let known = std::fs::read_to_string(root().join(".crates.toml")).unwrap_or_default();
    for (name, version) in TOOLS {
        let there =
            known.contains(&format!("\"{name} {version} (")) && root().join("bin").join(name).exists();
        if there {
            continue;
        }
        run(cargo()
            .args(["install", "--locked", "--quiet", "--force", "--version", version])
            .arg("--root")
            .arg(root())
            .arg(name))?;
    }
    Ok(())
}
