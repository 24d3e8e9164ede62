//! Compiles `src/initramfs`, the small program that `host::initramfs` packs for kernels with modules: with the same
//! compiler, linked statically, and without cargo, since a package can't depend on a binary of its own.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src/initramfs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    if env::var_os("CARGO_FEATURE_HOST").is_none() {
        return ExitCode::SUCCESS;
    }
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let output = PathBuf::from(variable("OUT_DIR")).join("initramfs-init");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=initramfs_init"])
        .args([
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Clto=fat",
            "-Ccodegen-units=1",
        ])
        .args(["-Ctarget-feature=+crt-static", "-Dwarnings"])
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&output)
        .arg("src/initramfs/main.rs");
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    match rustc.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            println!("cargo::error=compiling src/initramfs ended with {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("cargo::error=rustc can't be started for src/initramfs: {error}");
            ExitCode::FAILURE
        }
    }
}
