//! What the optimizer needs to know of a matrix that trains, besides its values.

/// A matrix that trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in files.
    pub name: String,
    /// What it does in its layer.
    pub role: Role,
    /// The part of the model that it belongs to.
    pub tower: Tower,
}

impl Parameter {
    pub(crate) fn new(name: String, role: Role) -> Self {
        Self { name, role, tower: Tower::Language }
    }

    /// Whether weight decay applies: not to norms and biases, as in transformers.
    pub fn decays(&self) -> bool {
        match self.role {
            Role::Matrix => true,
            Role::Bias | Role::Norm => false,
        }
    }
}

/// What a matrix that trains does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weight of a linear layer, half of an adapter, or embedding.
    Matrix,
    /// Added to the output of a linear layer.
    Bias,
    /// Scale or shift of a norm.
    Norm,
}

/// The parts of a model that train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// The language model.
    Language,
    /// The projector, which may have a learning rate of its own.
    Projector,
}
