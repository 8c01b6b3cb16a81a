//! What the optimizer needs to know about a trainable matrix, besides its values.

/// A trainable matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name in files.
    pub name: String,
    /// The role in its layer.
    pub role: Role,
    /// The part of the model to which it belongs.
    pub tower: Tower,
}

impl Parameter {
    pub(crate) fn new(name: String, role: Role) -> Self {
        Self { name, role, tower: Tower::Language }
    }

    /// Whether weight decay applies: as in transformers, to all but norms and biases.
    pub fn decays(&self) -> bool {
        match self.role {
            Role::Matrix | Role::LoraB | Role::Magnitude => true,
            Role::Bias | Role::Norm => false,
        }
    }
}

/// The role of a trainable matrix in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight of a linear layer, A of an adapter, or embedding.
    Matrix,
    /// B of an adapter, which has a learning rate of its own in LoRA+ (Hayou et al. 2024, arXiv 2402.12354).
    LoraB,
    /// Norms of the rows of an adapted weight in DoRA. They learn as B does, and decay: both as in peft and transformers.
    Magnitude,
    /// Bias of a linear layer.
    Bias,
    /// Weight or bias of a norm.
    Norm,
}

/// The trainable parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// The language model.
    Language,
    /// The projector, which may have a separate learning rate.
    Projector,
    /// The vision encoder's last blocks, which have one.
    Vision,
}
