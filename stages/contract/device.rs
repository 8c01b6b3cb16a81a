//! Where a stage computes: what is asked for, what it gets, and what is recorded of it. Plain data: independent of drivers.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// A GPU if the stage reserves one and one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU through CUDA.
    Cuda,
}

impl DeviceChoice {
    /// The names of all choices, as they are written.
    pub const NAMES: [&'static str; 3] = ["auto", "cpu", "cuda"];
}

/// What a stage gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// Its GPUs, through CUDA.
    Cuda,
}

/// `CPU`, `GPU`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "GPU",
        })
    }
}

/// What a stage computed on, for its receipt. No part of a key: two devices give the same result within rounding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The kind of device.
    pub device: Device,
    /// The processor or the card.
    pub name: String,
    /// The version of the card's driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The versions of the libraries that compute, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub libraries: BTreeMap<String, String>,
}

/// `GPU: NVIDIA H100, driver 550.54.15 for CUDA 12.4, cuBLASLt 12.4`.
impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.name)?;
        if let Some(driver) = &self.driver {
            write!(f, ", driver {driver}")?;
        }
        self.libraries.iter().try_for_each(|(name, version)| write!(f, ", {name} {version}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_pipelines() {
        let all = [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda];
        assert_eq!(serde_json::to_value(all).unwrap(), serde_json::json!(DeviceChoice::NAMES));
    }

    #[test]
    fn an_environment_is_one_line() {
        let mut environment =
            Environment { device: Device::Cpu, name: "x86, AVX2".into(), driver: None, libraries: BTreeMap::new() };
        assert_eq!(environment.to_string(), "CPU: x86, AVX2");
        environment.device = Device::Cuda;
        environment.driver = Some("550.54".into());
        environment.libraries.insert("cuBLASLt".into(), "12.4".into());
        assert_eq!(environment.to_string(), "GPU: x86, AVX2, driver 550.54, cuBLASLt 12.4");
    }
}
