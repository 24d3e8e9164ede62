//! Root file systems for microVMs and containers: a recipe in, an image out.
//!
//! ```text
//! image.toml --recipe--> Recipe --debian | oci | folder | nothing--> Tree --layers, python--> Tree
//!                                                        --squashfs | disk (erofs, ext4) | cpio | oci--> FILE
//! ```
//!
//! The same recipe, packages and init give the same bytes: everything is sorted, has one time stamp, and nothing that
//! tells of the machine or the day is taken over. Of init it knows the one file that it reads its environment from.

mod archive;
mod compression;
mod cpio;
mod debian;
mod disk;
mod folder;
mod format;
mod init_binary;
pub mod inspect;
mod layers;
mod links;
mod oci;
mod python;
mod recipe;
mod squashfs;
mod target;
mod tools;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use archive::ArchiveError;
pub use compression::Compression;
pub use debian::DebianError;
pub use disk::DiskError;
pub use folder::FolderError;
pub use format::Format;
pub use init_binary::{InitBinary, InitError};
pub use inspect::{InspectError, Inspection};
pub use oci::{OciReadError, OciWriteError};
pub use python::PythonError;
pub use recipe::{Base, DEFAULT_EPOCH, Debian, FILE_NAME, FILES_FOLDER, Folder, Python, Recipe, RecipeError};
pub use squashfs::SquashfsError;
pub use target::WriteError;
pub use tree::TreeError;

use folder::Modes;
use target::Target;
use tree::Tree;

/// Where a build tells what it is doing, a line at a time.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Where a build says which time stamp files get, if its recipe doesn't (reproducible-builds.org/specs/source-date-epoch).
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// An image to build.
#[derive(Debug)]
pub struct Build {
    /// The recipe's folder or file.
    pub recipe: PathBuf,
    /// The files that it is written to, each the same image.
    pub outputs: Vec<Output>,
    /// The program or script that becomes `/sbin/init`; none: the program that is running.
    pub init: Option<PathBuf>,
    /// Packages kept from one build to the next.
    pub cache: Option<PackageCache>,
}

/// A file that an image is written to.
#[derive(Debug)]
pub struct Output {
    /// The file.
    pub path: PathBuf,
    /// What kind of image it becomes.
    pub format: Format,
}

/// A folder that packages are kept in.
#[derive(Debug)]
pub struct PackageCache {
    /// The folder; made if it isn't there.
    pub folder: PathBuf,
    /// Take everything from the folder, nothing from the network: the versions of the build that filled it.
    pub offline: bool,
}

/// A file of an image that was built.
#[derive(Debug)]
pub struct Built {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Files, folders, links and devices in it.
    pub entries: usize,
}

/// Why an image can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe can't be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The program for `/sbin/init` can't be used.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The Debian base can't be made.
    #[error(transparent)]
    Debian(#[from] DebianError),
    /// A file of the recipe or of the folder can't be put into the image.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file of the recipe has no place in the image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The recipe's Python packages can't be had.
    #[error(transparent)]
    Python(#[from] PythonError),
    /// The OCI image that should be the base can't be used.
    #[error(transparent)]
    OciBase(#[from] OciReadError),
    /// The image can't be written.
    #[error(transparent)]
    Squashfs(#[from] SquashfsError),
    /// The image can't be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The image can't be written.
    #[error(transparent)]
    Oci(#[from] OciWriteError),
    /// The image can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The image would take the place of what it is made of.
    #[error("{0} is a part of what the image is made of, and would be overwritten: name another output")]
    OutputIsInput(PathBuf),
    /// `SOURCE_DATE_EPOCH` is no time.
    #[error("SOURCE_DATE_EPOCH is {0:?}: it must be a number of seconds since 1970, below 4294967296, or not set")]
    Epoch(String),
    /// The folder that should be the base isn't there.
    #[error(
        "the base folder {0} of the recipe is not a folder: correct base.folder.path, which starts from the recipe's own folder"
    )]
    NoFolder(PathBuf),
}

/// Ends and removes what was begun, for a process that is to end now.
pub fn abandon() {
    tools::abandon();
    target::abandon();
}

impl Build {
    /// Builds the image, and calls `done` with each file that is there. Takes as long as the packages take: call it from a
    /// thread that may wait.
    ///
    /// # Errors
    /// What is wrong with the recipe, with init or with the outputs is told before anything is done; then whatever fails on the
    /// way. What was there before an output stays unless the output is whole.
    pub fn run(&self, progress: Progress<'_>, done: &dyn Fn(&Output, Built)) -> Result<(), BuildError> {
        let recipe = recipe::read(&self.recipe)?;
        let init = InitBinary::find(self.init.as_deref())?;
        let epoch = epoch(&recipe)?;
        // A place that can't be written to is told now. It is made for good only when there is something to write: a
        // build that is interrupted before leaves nothing there.
        let inputs = self.inputs(&recipe, &init);
        for output in &self.outputs {
            let there = output.path.canonicalize();
            if there.is_ok_and(|there| inputs.iter().any(|input| there.starts_with(input))) {
                return Err(BuildError::OutputIsInput(output.path.clone()));
            }
            drop(Target::create(&output.path)?);
        }

        if matches!(recipe.base, Base::Debian(_)) {
            // mmdebstrap makes what runs on this machine.
            init.require(std::env::consts::ARCH)?;
            debian::check()?;
        }
        let mut files = Tree::default();
        let python = recipe.python.as_ref();
        let python = python.map(|python| python::add(&mut files, python, &recipe, self.cache.as_ref(), progress));
        // What was unpacked is read when the image is written.
        let _packages = python.transpose()?;
        if let Some(folder) = recipe.files() {
            folder::add(&mut files, &folder, Modes::Plain)?;
        }
        let (mut tree, mut environment) = self.base(&recipe, &files, &init, epoch, progress)?;
        let own = recipe.environment.iter();
        environment.extend(own.map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone())));
        layers::apply(&mut tree, &recipe, files, &environment, &init)?;
        init.check_in(&tree)?;

        // A machine's init looks there by itself; in a container programs are told.
        let mut containers_environment = environment;
        if let Some(python) = &recipe.python {
            let packages = containers_environment.entry("PYTHONPATH".to_owned());
            packages.or_insert_with(|| python.target.get_ref().clone());
        }
        let entries = tree.iter().count();
        for output in &self.outputs {
            progress(&format!(
                "writing {entries} files, folders and links to {}",
                output.path.display()
            ));
            let target = Target::create(&output.path)?;
            match output.format {
                Format::Squashfs => squashfs::write(&tree, recipe.compression, epoch, &target)?,
                Format::Erofs => disk::erofs(&tree, epoch, &target)?,
                Format::Ext4 => disk::ext4(&tree, epoch, &target)?,
                Format::Cpio => cpio::write(&tree, epoch, &target).map_err(|source| target.error(source))?,
                Format::Oci => oci::write(tree.clone(), &containers_environment, init.architecture, epoch, &target)?,
            }
            let bytes = target.finish()?;
            done(output, Built { bytes, entries });
        }
        Ok(())
    }

    /// The files and folders that the image is made of.
    fn inputs(&self, recipe: &Recipe, init: &InitBinary) -> Vec<PathBuf> {
        let base = match &recipe.base {
            Base::Folder(base) | Base::Oci(base) => Some(base.path.get_ref()),
            Base::Debian(_) | Base::None => None,
        };
        let list = recipe.python.as_ref().map(|python| python.requirements.get_ref());
        let named = base.into_iter().chain(list).map(|path| recipe.folder.join(path));
        let others = [
            Some(recipe::file_at(&self.recipe)),
            recipe.files(),
            Some(init.path.clone()),
        ];
        let all = named.chain(others.into_iter().flatten());
        all.filter_map(|path| path.canonicalize().ok()).collect()
    }

    /// What the image starts from, and the environment that comes with it.
    fn base(
        &self,
        recipe: &Recipe,
        files: &Tree,
        init: &InitBinary,
        epoch: u32,
        progress: Progress<'_>,
    ) -> Result<(Tree, BTreeMap<String, String>), BuildError> {
        let tree = match &recipe.base {
            Base::None => Tree::default(),
            Base::Folder(folder) => folder_base(&recipe.folder.join(folder.path.get_ref()))?,
            Base::Oci(image) => {
                let path = recipe.folder.join(image.path.get_ref());
                progress(&format!("layers of the OCI image {}", path.display()));
                let base = oci::read(&path, init.architecture)?;
                return Ok((base.tree, base.environment));
            }
            Base::Debian(debian) => debian::bootstrap(debian, recipe, files, epoch, self.cache.as_ref(), progress)?,
        };
        Ok((tree, BTreeMap::new()))
    }
}

fn folder_base(folder: &Path) -> Result<Tree, BuildError> {
    if !folder.is_dir() {
        return Err(BuildError::NoFolder(folder.to_path_buf()));
    }
    let mut tree = Tree::default();
    folder::add(&mut tree, folder, Modes::Kept)?;
    Ok(tree)
}

/// The recipe's word, then the environment's, then [`DEFAULT_EPOCH`]: never the time of the build.
fn epoch(recipe: &Recipe) -> Result<u32, BuildError> {
    match (recipe.epoch, std::env::var_os(EPOCH_VARIABLE)) {
        (Some(epoch), _) => Ok(epoch),
        (None, None) => Ok(DEFAULT_EPOCH),
        (None, Some(text)) => {
            let text = text.to_string_lossy();
            text.parse().map_err(|_| BuildError::Epoch(text.into_owned()))
        }
    }
}
