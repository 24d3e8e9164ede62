//! What a user of `polyinit image` notices: images from recipes, the same every time, and mistakes told where they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use backhand::{FilesystemReader, InnerNode};
use tempfile::TempDir;

/// The recipes of this repository.
fn runtime(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes").join(name)
}

fn polyinit(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polyinit"));
    command
        .arg("image")
        .args(arguments)
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .expect("polyinit runs")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}", errors(&output));
    output
}

/// The last line, or the sentence with its lines, after `error: `.
fn fails(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let text = errors(&output);
    text.split_once("error: ").expect("an error").1.trim_end().to_owned()
}

/// The least that Linux starts: a 64-bit header and one segment (elf(5)), no interpreter.
fn small_init(folder: &Path) -> PathBuf {
    let mut elf = vec![0; 64 + 56];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..18].copy_from_slice(&2_u16.to_le_bytes()); // e_type: ET_EXEC
    elf[18..20].copy_from_slice(&62_u16.to_le_bytes()); // e_machine: EM_X86_64
    elf[20..24].copy_from_slice(&1_u32.to_le_bytes()); // e_version
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes()); // e_phoff
    elf[52..54].copy_from_slice(&64_u16.to_le_bytes()); // e_ehsize
    elf[54..56].copy_from_slice(&56_u16.to_le_bytes()); // e_phentsize
    elf[56..58].copy_from_slice(&1_u16.to_le_bytes()); // e_phnum
    elf[64..68].copy_from_slice(&1_u32.to_le_bytes()); // p_type: PT_LOAD
    let path = folder.join("small-init");
    fs::write(&path, elf).expect("writes");
    path
}

/// A recipe in a folder of its own.
fn recipe(folder: &Path, text: &str) -> PathBuf {
    let recipe = folder.join("recipe");
    fs::create_dir_all(&recipe).expect("a folder");
    fs::write(recipe.join("image.toml"), text).expect("writes");
    recipe
}

/// What is in an image: kind and mode of every path, and the text of files that are texts.
struct Content {
    modes: BTreeMap<String, String>,
    texts: BTreeMap<String, String>,
}

fn content(image: &Path) -> Content {
    let file = BufReader::new(fs::File::open(image).expect("the image"));
    let image = FilesystemReader::from_reader(file).expect("a squashfs");
    let mut content = Content {
        modes: BTreeMap::new(),
        texts: BTreeMap::new(),
    };
    for node in image.files() {
        let path = node.fullpath.display().to_string();
        let kind = match &node.inner {
            InnerNode::File(file) => {
                let mut bytes = Vec::new();
                image.file(file).reader().read_to_end(&mut bytes).expect("reads");
                if let Ok(text) = String::from_utf8(bytes) {
                    content.texts.insert(path.clone(), text);
                }
                "file".to_owned()
            }
            InnerNode::Symlink(link) => format!("-> {}", link.link.display()),
            InnerNode::Dir(_) => "folder".to_owned(),
            InnerNode::CharacterDevice(device) => format!("device {:#x}", device.device_number),
            other => panic!("{path} is {other:?}"),
        };
        let owner = match (node.header.uid, node.header.gid) {
            (0, 0) => String::new(),
            (uid, gid) => format!(" of {uid}:{gid}"),
        };
        content
            .modes
            .insert(path, format!("{:o} {kind}{owner}", node.header.permissions));
    }
    content
}

/// Everything in the folder but the names given: what a build must not leave.
fn left_in(folder: &Path, expected: &[&str]) -> Vec<String> {
    let names = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !expected.contains(&name.as_str())).collect()
}

#[test]
fn the_wasm_image_holds_nothing_but_init_and_is_the_same_every_time() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let images = ["a", "b"].map(|name| folder.path().join(name));
    for image in &images {
        succeeds(polyinit(&[&"build", &runtime("wasm"), &"-o", image, &"--init", &init]));
    }
    let [first, second] = images.each_ref().map(|image| fs::read(image).expect("reads"));
    assert_eq!(first, second, "two builds of the same recipe differ");

    let content = content(&images[0]);
    let expected = "\
/ 755 folder
/data 755 folder
/dev 755 folder
/dev/console 600 device 0x501
/dev/null 666 device 0x103
/etc 755 folder
/etc/group 644 file
/etc/hosts 644 file
/etc/nsswitch.conf 644 file
/etc/passwd 644 file
/mnt 755 folder
/opt 755 folder
/proc 555 folder
/rom 755 folder
/root 700 folder
/run 755 folder
/sbin 755 folder
/sbin/init 755 file
/sys 555 folder
/tmp 1777 folder
/var 755 folder
";
    let lines: String = content
        .modes
        .iter()
        .map(|(path, mode)| format!("{path} {mode}\n"))
        .collect();
    assert_eq!(lines, expected);
    assert!(content.texts["/etc/hosts"].contains("127.0.0.1 localhost"));
    assert_eq!(left_in(folder.path(), &["a", "b", "small-init"]), [""; 0]);
}

#[test]
fn without_another_init_the_running_program_becomes_it_if_it_is_static() {
    let folder = TempDir::new().expect("a folder");
    // The tests are linked as the program is.
    let output = polyinit(&[&"build", &runtime("wasm"), &"-o", &folder.path().join("image")]);
    if cfg!(target_feature = "crt-static") {
        succeeds(output);
        let image = BufReader::new(fs::File::open(folder.path().join("image")).expect("the image"));
        let image = FilesystemReader::from_reader(image).expect("a squashfs");
        let init = image
            .files()
            .find(|node| node.fullpath == Path::new("/sbin/init"))
            .expect("init");
        let InnerNode::File(file) = &init.inner else {
            panic!("init is no file")
        };
        let mut bytes = Vec::new();
        image.file(file).reader().read_to_end(&mut bytes).expect("reads");
        assert!(
            bytes == fs::read(env!("CARGO_BIN_EXE_polyinit")).expect("reads"),
            "another program"
        );
    } else {
        assert!(fails(output).contains("is linked dynamically"));
    }
}

#[test]
fn a_folder_gets_the_recipes_files_environment_and_init() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let recipe = recipe(
        folder.path(),
        "compression = \"gzip\"\n[base.folder]\npath = \"../base\"\n[environment]\nLANG = \"C.UTF-8\"\nA = \"1 2\"\n",
    );
    for (path, text) in [
        ("base/usr/sbin/tool", "tool"),
        ("base/etc/motd", "base"),
        ("base/sys/x", ""),
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("writes");
    }
    symlink("usr/sbin", folder.path().join("base/sbin")).expect("a link");
    symlink("/usr/lib/systemd", folder.path().join("base/usr/sbin/init")).expect("a link");
    fs::create_dir_all(recipe.join("files/etc")).expect("a folder");
    fs::write(recipe.join("files/etc/motd"), "recipe").expect("writes");
    fs::set_permissions(recipe.join("files/etc/motd"), fs::Permissions::from_mode(0o600)).expect("a mode");

    let image = folder.path().join("image");
    succeeds(polyinit(&[&"build", &recipe, &"-o", &image, &"--init", &init]));
    let content = content(&image);
    assert_eq!(content.texts["/etc/motd"], "recipe");
    assert_eq!(content.modes["/etc/motd"], "644 file");
    assert_eq!(content.texts["/etc/polyinit/environment"], "A=1 2\nLANG=C.UTF-8\n");
    assert_eq!(content.modes["/sbin"], "777 -> usr/sbin");
    assert_eq!(content.modes["/usr/sbin/init"], "755 file");
    assert_eq!(content.texts["/usr/sbin/tool"], "tool");
}

#[test]
fn a_script_may_be_init_where_the_image_has_what_runs_it() {
    let folder = TempDir::new().expect("a folder");
    let recipe = recipe(folder.path(), "[base.folder]\npath = \"../base\"\n");
    fs::create_dir_all(folder.path().join("base/usr/bin")).expect("a folder");
    fs::write(folder.path().join("base/usr/bin/dash"), "shell").expect("writes");
    symlink("dash", folder.path().join("base/usr/bin/sh")).expect("a link");
    symlink("usr/bin", folder.path().join("base/bin")).expect("a link");
    let (image, script) = (folder.path().join("image"), folder.path().join("init.sh"));

    fs::write(&script, "#!/bin/sh -e\nexec /sbin/other\n").expect("writes");
    succeeds(polyinit(&[&"build", &recipe, &"-o", &image, &"--init", &script]));
    assert_eq!(content(&image).modes["/sbin/init"], "755 file");
    let told = succeeds(polyinit(&[&"inspect", &image])).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(
        told.contains("init      0.0 MB, a script that /bin/sh runs\nboots     yes\n"),
        "{told}"
    );
    assert!(told.contains("/sbin/init is not polyinit"), "{told}");

    fs::write(&script, "#!/bin/bash\n").expect("writes");
    let error = fails(polyinit(&[&"build", &recipe, &"-o", &image, &"--init", &script]));
    assert!(
        error.ends_with("init.sh is a script that /bin/bash runs, and the image has no such file"),
        "{error}"
    );
}

#[test]
fn the_time_stamp_is_the_recipes_or_the_environments_but_never_todays() {
    let folder = TempDir::new().expect("a folder");
    let (init, image) = (small_init(folder.path()), folder.path().join("image"));
    let recipe = recipe(folder.path(), "base = \"none\"\n");
    let epoch = |variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polyinit"));
        command
            .args(["image", "build"])
            .arg(&recipe)
            .arg("-o")
            .arg(&image)
            .arg("--init")
            .arg(&init);
        command
            .env_remove("SOURCE_DATE_EPOCH")
            .envs(variable.map(|value| ("SOURCE_DATE_EPOCH", value)));
        succeeds(command.output().expect("polyinit runs"));
        let file = BufReader::new(fs::File::open(&image).expect("the image"));
        let image = FilesystemReader::from_reader(file).expect("a squashfs");
        let times = image
            .files()
            .filter(|node| node.fullpath != Path::new("/"))
            .map(|node| node.header.mtime);
        assert!(
            times.into_iter().all(|time| time == image.mod_time),
            "files have other times than the image"
        );
        image.mod_time
    };
    assert_eq!(epoch(None), 315_532_800);
    assert_eq!(epoch(Some("1700000000")), 1_700_000_000);
    fs::write(recipe.join("image.toml"), "base = \"none\"\nepoch = 1600000000\n").expect("writes");
    assert_eq!(epoch(Some("1700000000")), 1_600_000_000);
}

#[test]
fn an_image_tells_what_is_in_it() {
    let folder = TempDir::new().expect("a folder");
    let (init, image) = (small_init(folder.path()), folder.path().join("image"));
    succeeds(polyinit(&[&"build", &runtime("wasm"), &"-o", &image, &"--init", &init]));

    let output = succeeds(polyinit(&[&"inspect", &image, &"--json"]));
    let inspection: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(inspection["compression"], "zstd");
    assert_eq!(
        inspection["image_bytes"],
        fs::metadata(&image).expect("the image").len()
    );
    assert_eq!(inspection["init"]["is_static"], true);
    assert_eq!(inspection["init"]["bytes"], 120);
    assert_eq!(inspection["files"], 5);

    assert_eq!(
        (&inspection["format"], &inspection["can_boot"]),
        (&"squashfs".into(), &true.into())
    );

    let text = succeeds(polyinit(&[&"inspect", &image])).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("init      0.0 MB, static\nboots     yes\n"), "{text}");
    assert!(text.contains("/sbin/init is not polyinit"), "{text}");

    let error = fails(polyinit(&[&"inspect", &runtime("wasm/image.toml")]));
    assert!(
        error.contains("image.toml is no image: it holds none of squashfs, "),
        "{error}"
    );
}

/// A recipe with everything in it that an image can hold, but owners, which only root can give a folder.
fn full_recipe(folder: &Path) -> PathBuf {
    let recipe = recipe(
        folder,
        "[base.folder]\npath = \"../base\"\n[environment]\nA = \"1 2\"\n",
    );
    let base = folder.join("base");
    fs::create_dir_all(base.join("usr/share/a b")).expect("a folder");
    fs::write(base.join("usr/share/a b/text"), "some text\n".repeat(1000)).expect("writes");
    fs::write(base.join("usr/share/empty"), "").expect("writes");
    fs::write(base.join("usr/tool"), "tool").expect("writes");
    fs::set_permissions(base.join("usr/tool"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    symlink("share/a b/text", base.join("usr/link")).expect("a link");
    recipe
}

#[test]
fn every_format_is_the_same_every_time_and_says_what_it_is() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let recipe = full_recipe(folder.path());
    let formats = [
        ("squashfs", true),
        ("erofs", true),
        ("ext4", true),
        ("cpio", true),
        ("oci", false),
    ];
    let image = |name: &str, format: &str| folder.path().join(format!("{name}.{format}"));
    // All at once, and each by itself.
    let together = formats.map(|(format, _)| image("a", format));
    let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"build", &recipe, &"--init", &init];
    for output in &together {
        arguments.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, output]);
    }
    let output = succeeds(polyinit(&arguments));
    for path in &together {
        assert!(
            errors(&output).contains(&format!("\n{}: ", path.display())),
            "{}",
            errors(&output)
        );
    }
    for (format, boots) in formats {
        let images = [image("a", format), image("b", format)];
        succeeds(polyinit(&[&"build", &recipe, &"-o", &images[1], &"--init", &init]));
        let [first, second] = images.each_ref().map(|image| fs::read(image).expect("reads"));
        assert!(first == second, "two {format} images of the same recipe differ");
        let output = succeeds(polyinit(&[&"inspect", &images[0], &"--json"]));
        let inspection: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(inspection["format"], format);
        assert_eq!(inspection["can_boot"], boots, "{inspection}");
        assert_eq!(inspection["image_bytes"], first.len());
    }
}

/// What the file systems' own checkers say, and what their tools find inside.
#[test]
fn disks_are_in_order_and_hold_what_the_recipe_has() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let recipe = full_recipe(folder.path());
    let build = |name: &str| {
        let image = folder.path().join(name);
        succeeds(polyinit(&[&"build", &recipe, &"-o", &image, &"--init", &init]));
        image
    };
    let tool = |name: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        let mut command = Command::new(name);
        command.args(arguments).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let output = command.output().expect(name);
        assert!(output.status.success(), "{name}: {}", errors(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ext4 = build("image.ext4");
    tool("e2fsck", &[&"-f", &"-n", &ext4]);
    let debugfs = |command: &str| tool("debugfs", &[&"-R", &command, &ext4]);
    assert_eq!(debugfs("cat \"/usr/share/a b/text\""), "some text\n".repeat(1000));
    assert!(
        debugfs("stat /usr/tool").contains("Mode:  04755"),
        "{}",
        debugfs("stat /usr/tool")
    );
    assert!(debugfs("stat /usr/link").contains("Fast link dest: \"share/a b/text\""));
    assert!(debugfs("stat /tmp").contains("Mode:  01777"));
    assert!(debugfs("stat /dev/console").contains("Type: character special"));
    assert!(
        debugfs("stat /dev/console").contains("mtime: 0x12cea600"),
        "{}",
        debugfs("stat /dev/console")
    );

    let erofs = build("image.erofs");
    let unpacked = folder.path().join("unpacked");
    tool("fsck.erofs", &[&format!("--extract={}", unpacked.display()), &erofs]);
    let text = fs::read_to_string(unpacked.join("usr/link")).expect("through the link");
    assert_eq!(text, "some text\n".repeat(1000));
    assert_eq!(
        fs::read_to_string(unpacked.join("etc/polyinit/environment")).expect("reads"),
        "A=1 2\n"
    );
}

#[test]
fn an_oci_image_is_a_base_for_another() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let archive = folder.path().join("base.oci");
    succeeds(polyinit(&[
        &"build",
        &full_recipe(folder.path()),
        &"-o",
        &archive,
        &"--init",
        &init,
    ]));
    let text = "[base.oci]\npath = \"../base.oci\"\n[environment]\nB = \"2\"\n";
    let second = recipe(folder.path(), text);
    let image = folder.path().join("image.squashfs");
    succeeds(polyinit(&[&"build", &second, &"-o", &image, &"--init", &init]));
    let content = content(&image);
    assert_eq!(content.texts["/usr/share/a b/text"], "some text\n".repeat(1000));
    assert_eq!(content.modes["/usr/tool"], "4755 file");
    assert_eq!(content.modes["/usr/link"], "777 -> share/a b/text");
    assert_eq!(content.modes["/usr/bin/polyinit"], "777 -> /sbin/init");
    let environment = &content.texts["/etc/polyinit/environment"];
    assert_eq!(
        environment,
        "A=1 2\nB=2\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );

    let mut damaged = fs::read(&archive).expect("reads");
    let layer = damaged
        .windows(4)
        .position(|window| window == b"\x1f\x8b\x08\0")
        .expect("a gzip");
    damaged[layer + 100] ^= 1;
    fs::write(&archive, damaged).expect("writes");
    let error = fails(polyinit(&[&"build", &second, &"-o", &image, &"--init", &init]));
    assert!(error.contains("of the OCI image is damaged"), "{error}");
}

#[test]
fn what_is_no_file_stays_and_a_link_leads_to_what_is_written() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let (socket, link, image) = ["socket", "link", "image"].map(|name| folder.path().join(name)).into();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let error = fails(polyinit(&[
        &"build",
        &runtime("wasm"),
        &"-o",
        &socket,
        &"--init",
        &init,
    ]));
    assert!(
        error.ends_with("a device, a pipe or a socket is there, which stays"),
        "{error}"
    );
    fs::write(&image, "old").expect("writes");
    symlink("image", &link).expect("a link");
    succeeds(polyinit(&[&"build", &runtime("wasm"), &"-o", &link, &"--init", &init]));
    assert!(link.is_symlink());
    assert!(content(&image).modes.contains_key("/sbin/init"));
    assert_eq!(
        left_in(folder.path(), &["image", "link", "socket", "small-init"]),
        [""; 0]
    );
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing() {
    for format in ["squashfs", "erofs"] {
        let folder = TempDir::new().expect("a folder");
        let init = small_init(folder.path());
        let path = recipe(folder.path(), "base = \"none\"\n");
        fs::create_dir_all(path.join("files")).expect("a folder");
        // Enough to be in the middle of it.
        let large = fs::File::create(path.join("files/large")).expect("a file");
        large.set_len(8 << 30).expect("its length");
        let (output, temporary) = (folder.path().join("output"), folder.path().join("temporary"));
        for folder in [&output, &temporary] {
            fs::create_dir(folder).expect("a folder");
        }
        let mut build = Command::new(env!("CARGO_BIN_EXE_polyinit"))
            .args(["image", "build", "--format", format, "--init"])
            .args([&init, &path, Path::new("-o"), &output.join("image")])
            .env("TMPDIR", &temporary)
            .stderr(Stdio::piped())
            .spawn()
            .expect("polyinit runs");
        let mut lines = BufReader::new(build.stderr.take().expect("its stderr")).lines();
        while !lines.next().expect("a line").expect("a text").starts_with("writing") {}
        while left_in(&output, &[]).is_empty() {
            std::thread::yield_now();
        }
        let id = nix::unistd::Pid::from_raw(build.id() as i32);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("it is there");
        assert_eq!(build.wait().expect("its end").code(), Some(1));
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        assert_eq!(rest, ["error: interrupted before all was done"]);
        for folder in [&output, &temporary] {
            assert_eq!(left_in(folder, &[]), [""; 0], "{format}");
        }
    }
}

#[test]
fn a_link_that_is_too_long_is_told() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let path = recipe(folder.path(), "base = \"none\"\n");
    fs::create_dir(path.join("files")).expect("a folder");
    symlink("x".repeat(256), path.join("files/long")).expect("a link");
    let image = folder.path().join("image");
    let error = fails(polyinit(&[&"build", &path, &"-o", &image, &"--init", &init]));
    assert!(
        error.contains("the link long leads is 256 bytes long, and 255 are the limit"),
        "{error}"
    );
}

#[test]
fn a_mistake_is_told_before_anything_is_done_and_leaves_what_was_there() {
    let folder = TempDir::new().expect("a folder");
    let (init, image) = (small_init(folder.path()), folder.path().join("image"));
    fs::write(&image, "old").expect("writes");
    let build = |recipe: &Path| fails(polyinit(&[&"build", &recipe, &"-o", &image, &"--init", &init]));

    let path = recipe(
        folder.path(),
        "[base.debian]\nsuite = \"bookworm\"\npakages = [\"python3\"]\n",
    );
    let error = build(&path);
    assert!(
        error.starts_with(&format!(
            "{}:3:1: unknown field `pakages`",
            path.join("image.toml").display()
        )),
        "{error}"
    );
    assert!(error.ends_with("did you mean `packages`?"), "{error}");

    recipe(folder.path(), "[base.folder]\npath = \"nowhere\"\n");
    assert!(
        build(&path).contains("nowhere of the recipe is not a folder"),
        "{}",
        build(&path)
    );

    let error = build(&folder.path().join("missing"));
    assert!(
        error.ends_with("name a folder that holds image.toml, or the file itself"),
        "{error}"
    );

    let error = fails(polyinit(&[
        &"build",
        &runtime("wasm"),
        &"-o",
        &image,
        &"--init",
        &"/etc/passwd",
    ]));
    assert!(
        error.starts_with("/etc/passwd can't become the image's /sbin/init"),
        "{error}"
    );

    let missing = folder.path().join("missing/image");
    let error = fails(polyinit(&[
        &"build",
        &runtime("wasm"),
        &"-o",
        &missing,
        &"--init",
        &init,
    ]));
    assert!(
        error.starts_with(&format!("can't write {}: ", missing.display())),
        "{error}"
    );

    assert_eq!(fs::read(&image).expect("reads"), b"old");
    assert_eq!(left_in(folder.path(), &["image", "recipe", "small-init"]), [""; 0]);
}

#[test]
fn a_machine_without_mmdebstrap_is_told_what_to_install() {
    let folder = TempDir::new().expect("a folder");
    let (init, image) = (small_init(folder.path()), folder.path().join("image"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_polyinit"));
    command
        .args(["image", "build"])
        .arg(runtime("debian-12"))
        .arg("-o")
        .arg(&image)
        .arg("--init")
        .arg(&init);
    let error = fails(command.env("PATH", folder.path()).output().expect("polyinit runs"));
    if cfg!(target_arch = "x86_64") {
        assert!(error.contains("run `apt install mmdebstrap`"), "{error}");
    } else {
        assert!(error.contains("name another one with --init"), "{error}");
    }
    assert!(!image.exists());
}

/// Packages come from where `make images` keeps them; only without it, a mirror of Debian is needed.
#[test]
fn the_debian_image_is_the_same_every_time_and_holds_what_programs_need() {
    let folder = TempDir::new().expect("a folder");
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/packages");
    let build = |name: &str, offline: bool| {
        let image = folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_polyinit"));
        command
            .args(["image", "build"])
            .arg(runtime("debian-12"))
            .arg("-o")
            .arg(&image);
        command.arg("--cache").arg(&cache).args(offline.then_some("--offline"));
        succeeds(command.output().expect("polyinit runs"));
        image
    };
    let is_cached = cache.join("sources.list").is_file();
    let early = (!is_cached).then(|| build("first", false));
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| build("second", true));
        let first = early.unwrap_or_else(|| build("first", true));
        (first, second.join().expect("builds"))
    });
    assert!(
        fs::read(&first).expect("reads") == fs::read(&second).expect("reads"),
        "two builds of the same recipe differ"
    );

    let output = succeeds(polyinit(&[&"inspect", &first, &"--json"]));
    let inspection: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        inspection["runtimes"]["python3"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.11.")),
        "{inspection}"
    );
    assert!(
        inspection["runtimes"]["nodejs"]
            .as_str()
            .is_some_and(|version| version.starts_with("18.")),
        "{inspection}"
    );
    assert_eq!(inspection["init"]["is_static"], true);

    assert_eq!(content(&first).texts["/etc/polyinit/environment"], "LANG=C.UTF-8\n");
    let file = BufReader::new(fs::File::open(&first).expect("the image"));
    let image = FilesystemReader::from_reader(file).expect("a squashfs");
    let paths: Vec<&Path> = image.files().map(|node| node.fullpath.as_path()).collect();
    for present in [
        "/usr/bin/python3.11",
        "/usr/bin/node",
        "/opt/aleph/libs/fastapi/__pycache__/applications.cpython-311.pyc",
        "/usr/lib/python3.11/asyncio/__pycache__/base_events.cpython-311.pyc",
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/share/zoneinfo/Europe/Paris",
        "/usr/share/doc/nodejs/copyright",
        "/usr/sbin/init",
    ] {
        assert!(paths.contains(&Path::new(present)), "{present} is missing");
    }
    for absent in [
        "/usr/share/man/man1",
        "/var/log/dpkg.log",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/usr/bin/apt",
    ] {
        assert!(!paths.contains(&Path::new(absent)), "{absent} is there");
    }
    let count = |extension: &str| {
        let is_module = |path: &&&Path| {
            let of_python = ["/usr/lib/python3", "/usr/lib/python3.11", "/opt/aleph/libs"];
            of_python.iter().any(|folder| path.starts_with(folder)) && path.extension() == Some(extension.as_ref())
        };
        paths.iter().filter(is_module).count()
    };
    assert_eq!(count("pyc"), count("py"), "every module has its bytecode");
}

#[test]
fn an_output_is_none_of_what_the_image_is_made_of() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let path = recipe(folder.path(), "base = \"none\"\n");
    fs::create_dir(path.join("files")).expect("a folder");
    let (file, link) = (path.join("files/data"), folder.path().join("link"));
    fs::write(&file, "data").expect("writes");
    symlink(path.join("image.toml"), &link).expect("a link");
    for output in [&path.join("image.toml"), &file, &link, &init] {
        let before = fs::read(output).expect("reads");
        let error = fails(polyinit(&[&"build", &path, &"-o", output, &"--init", &init]));
        assert!(error.contains("is a part of what the image is made of"), "{error}");
        assert!(
            fs::read(output).expect("reads") == before,
            "{} is another",
            output.display()
        );
    }
}

#[test]
fn what_is_at_work_for_a_build_ends_with_it() {
    let folder = TempDir::new().expect("a folder");
    let init = small_init(folder.path());
    let path = recipe(
        folder.path(),
        "base = \"none\"\n[python]\nrequirements = \"list\"\nversion = \"3.11\"\n",
    );
    fs::write(path.join("list"), "").expect("writes");
    // In the place of pip: as mmdebstrap, it ends when its child has. What it leaves is removed, too.
    let python = folder.path().join("python3");
    let script = "#!/bin/sh\ntrap : TERM\ntouch \"$TMPDIR/polyinit-pip\"\nsh -c 'echo $$ > pid; mv pid ready; exec sleep 1000'\nexit 1\n";
    fs::write(&python, script).expect("writes");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    let place = folder.path().to_str().expect("UTF-8");
    let paths = format!("PATH={place}:{}", std::env::var("PATH").expect("a PATH"));
    let (init, path) = (init.to_str().expect("UTF-8"), path.to_str().expect("UTF-8"));
    let mut build = crate::support::Running::start_under(
        &["env", "-C", place, &paths],
        &["image", "build", "--init", init, path, "-o", "image"],
    );
    let ready = folder.path().join("ready");
    build.wait_until(|_| ready.exists());
    let child: i32 = fs::read_to_string(&ready)
        .expect("reads")
        .trim()
        .parse()
        .expect("a number");
    build.signal(nix::sys::signal::Signal::SIGTERM);
    let (status, output) = build.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "it is still at work");
}
