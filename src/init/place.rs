//! Where a guest lives: a machine, whose root, network and devices are its own, or a folder on somebody else's.

use std::path::{Path, PathBuf};

use super::services::Services;
use super::ssh;
use crate::engine::Settings;
use crate::machine::network::{self, Addressing, Plan};
use crate::machine::volumes::{self, Volume};
use crate::machine::{hostname, keys};
use crate::program::archive;
use crate::wire::Configuration;

/// A place to put programs and their data.
pub enum Place {
    Machine {
        /// What runs there beside the program.
        services: Services,
        /// The largest packet of its Ethernet device, where its owner chose one.
        mtu: Option<u32>,
    },
    Folder {
        root: PathBuf,
        /// Files that stand for block devices.
        devices: Vec<(String, PathBuf)>,
    },
}

/// Why the place is not as the configuration has it.
pub type PlaceError = Box<dyn std::error::Error + Send + Sync>;

impl Place {
    /// The path that `path`, absolute in a machine, has here.
    pub fn path(&self, path: &str) -> PathBuf {
        match self {
            Self::Machine { .. } => PathBuf::from(path),
            Self::Folder { root, .. } => root.join(path.trim_start_matches('/')),
        }
    }

    /// The Unix socket that leads to the guest API, where the network's SDK looks for it.
    pub fn api_socket(&self) -> PathBuf {
        self.path("/tmp/socat-socket")
    }

    /// Ends what runs beside the program.
    pub async fn halt(&self) {
        if let Self::Machine { services, .. } = self {
            services.stop().await;
        }
    }

    /// Network, host name, keys and volumes, as the host has them.
    ///
    /// # Errors
    /// A sentence that names what of the configuration can't be done.
    pub async fn set_up(&self, configuration: &Configuration, settings: &Settings) -> Result<(), PlaceError> {
        match self {
            Self::Machine { services, mtu } => set_up_machine(configuration, services, *mtu, settings).await,
            Self::Folder { root, devices } => {
                for volume in &configuration.volumes {
                    let target = self.inside(&volume.mount)?;
                    refuse_links(root, &volume.mount)?;
                    std::fs::create_dir_all(&target)?;
                    if volume.read_only {
                        let image = devices.iter().find(|(name, _)| *name == volume.device).ok_or_else(|| {
                            format!(
                                "volume {0} on {1}: there is no file for {0}; name one with --device {0}=FILE",
                                volume.device, volume.mount
                            )
                        })?;
                        archive::unsquash(std::fs::File::open(&image.1)?, &target)
                            .map_err(|error| format!("volume {} on {}: {error}", volume.device, volume.mount))?;
                    }
                }
                // What is unpacked there comes after the volumes.
                refuse_links(root, "/data")?;
                refuse_links(root, "/opt/code")
            }
        }
    }

    /// A mount point's path here; one that leads out of the folder is refused.
    fn inside(&self, path: &str) -> Result<PathBuf, PlaceError> {
        let plain = Path::new(path)
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir));
        if !path.starts_with('/') || !plain {
            return Err(format!("the mount point {path:?} must be an absolute path without `..`").into());
        }
        Ok(self.path(path))
    }
}

/// # Errors
/// A part of `path`, as it is in a machine, is a link below `root`: a volume that was unpacked before may have made it, to lead
/// elsewhere on this one.
fn refuse_links(root: &Path, path: &str) -> Result<(), PlaceError> {
    match archive::link_on_the_way(root, Path::new(path.trim_start_matches('/'))) {
        Some(link) => Err(format!("{} is a link, and would lead out of the folder", link.display()).into()),
        None => Ok(()),
    }
}

async fn set_up_machine(
    configuration: &Configuration,
    services: &Services,
    mtu: Option<u32>,
    settings: &Settings,
) -> Result<(), PlaceError> {
    // Everything is looked at before anything is done: a mistake leaves the machine as it was.
    let plan = Plan::new(&Addressing {
        ipv4: configuration.ip.clone(),
        ipv4_gateway: configuration.route.clone(),
        ipv6: configuration.ipv6.clone(),
        ipv6_gateway: configuration.ipv6_gateway.clone(),
        dns_servers: configuration.dns_servers.clone(),
        mtu,
    })?;
    let volumes: Vec<Volume> = configuration
        .volumes
        .iter()
        .map(|volume| Volume {
            device: volume.device.clone(),
            mount: volume.mount.clone(),
            read_only: volume.read_only,
        })
        .collect();
    if !configuration.vm_hash.is_empty() {
        let name = hostname::from_hash(&configuration.vm_hash)?;
        hostname::set(&name)?;
        network::write_hosts(Path::new("/etc"), &name)?;
    }
    // A machine without a network device still runs programs that need none.
    if let Err(error) = network::apply(&plan).await {
        match error {
            network::NetworkError::NoDevice => tracing::warn!("{error}"),
            error => return Err(error.into()),
        }
    }
    network::write_resolv_conf(Path::new("/etc"), &plan)?;
    if let Some(authorized) = configuration.authorized_keys.as_deref().filter(|keys| !keys.is_empty()) {
        keys::authorize(Path::new("/root"), authorized)?;
        let (services, settings) = (services.clone(), settings.clone());
        tokio::spawn(async move { ssh::start(&services, &settings).await });
    }
    // It may wait for a device, and mount(2) for a disk.
    tokio::task::spawn_blocking(move || volumes::mount_all(&volumes)).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_put_through_a_link_of_an_earlier_volume() {
        let elsewhere = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder {
            root: folder.path().to_owned(),
            devices: Vec::new(),
        };
        let settings = Settings::default();
        place.set_up(&Configuration::default(), &settings).await.unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("opt")).unwrap();
        let refused = place.set_up(&Configuration::default(), &settings).await.unwrap_err();
        assert!(refused.to_string().contains("opt is a link"), "{refused}");
    }
}
