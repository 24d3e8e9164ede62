//! Placeholder of the skeleton commit.
use super::{Engine, Settings, StartError};
use crate::program::Component;
use std::sync::Arc;

pub async fn start(component: &Component, _: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    Err(StartError::new(format!("{}: no engine yet", component.name)))
}
