//! Node programs that serve HTTP themselves: the worker only loads them, and closes its channel when it has.

use std::sync::Arc;
use std::time::Instant;

use super::start_script::{self, StartScript};
use super::{Node, typescript};
use crate::engine::executable::{self, Listening, Lookout, Ports, Start, Starting, blind};
use crate::engine::process;
use crate::engine::worker::{self, Language, Launched};
use crate::engine::{Engine, Settings, StartError};
use crate::program::Component;

const ADVICE: &str = "it has to export `fetch` or `handler`, or to stay in the foreground and serve HTTP there";

struct Server {
    component: Component,
    settings: Settings,
}

/// The engine of a program that `first` has loaded.
///
/// # Errors
/// It ends before it listens, or does not listen in time.
pub async fn start(
    component: &Component,
    settings: &Settings,
    lookout: Lookout,
    first: Launched,
) -> Result<Arc<dyn Engine>, StartError> {
    let server = Server {
        component: component.clone(),
        settings: settings.clone(),
    };
    let mut taken = first.start.clone();
    let began = Instant::now();
    let first = server.listening(lookout, first).await?;
    // Of one that listens by itself this is what its last part still takes.
    if let Some((_, last)) = taken.parts.last_mut() {
        *last += began.elapsed();
    }
    taken.note(&component.name);
    Ok(executable::serve(component, settings, Arc::new(server), first))
}

impl Server {
    async fn launch(&self) -> Result<Listening, StartError> {
        let (language, lookout) = prepare(&self.component, &self.settings).await?;
        let launched = worker::launch(&language, &self.component, &self.settings).await?;
        self.listening(lookout, launched).await
    }

    async fn listening(&self, lookout: Lookout, launched: Launched) -> Result<Listening, StartError> {
        let process = launched.interpreter.process;
        match launched.found.port {
            Some(port) => Ok(Listening {
                process,
                addresses: vec![(std::net::Ipv4Addr::LOCALHOST, port).into()],
                listener: None,
                own_port: launched.found.own_port,
                start: launched.start,
            }),
            None => {
                lookout
                    .wait(process, &format!("{}: it", self.component.name), |_| ADVICE)
                    .await
            }
        }
    }
}

impl Start for Server {
    fn start(&self) -> Starting<'_> {
        Box::pin(self.launch())
    }
}

/// What to tell Node, and how to see where its program listens.
///
/// # Errors
/// As [`Ports::choose`] and [`typescript::flags`], or the kernel does not tell what listens.
pub async fn prepare(component: &Component, settings: &Settings) -> Result<(Arc<dyn Language>, Lookout), StartError> {
    let mut start = start_script::description(component).and_then(|description| StartScript::of(&description));
    if let Some(start) = &mut start {
        start.lead_from(component);
        let given = process::environment(component, settings);
        if !given.iter().any(|(name, _)| name == "NODE_OPTIONS") {
            start.take_node_options();
        }
    }
    let mut flags = typescript::flags(component, settings, start.as_ref()).await?;
    flags.extend(start.iter().flat_map(|start| start.flags.iter().cloned()));
    let ports = Ports::choose(component, settings)?;
    let environment = ports.environment.clone();
    let lookout = Lookout::new(ports, settings).map_err(|error| blind(&component.name, &error))?;
    Ok((
        Arc::new(Node {
            environment,
            flags,
            start,
        }),
        lookout,
    ))
}
