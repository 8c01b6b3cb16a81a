//! The table of kinds, above all of them.
//! Independent of who runs them.

use crate::Stage;

/// Code to run with the type of a kind that is known by name only.
pub trait KindVisitor {
    /// What comes back.
    type Output;
    /// Called with the type of the kind.
    fn visit<S: Stage>(self) -> Self::Output;
}

macro_rules! kinds {
    ($($stage:ty),* $(,)?) => {
        /// The names of all kinds, in the order of a usual pipeline.
        pub const KINDS: &[&str] = &[$(<$stage as Stage>::KIND),*];

        /// Calls `visitor` with the type of the kind named `kind`; `None` if there is no such kind.
        pub fn visit<V: KindVisitor>(kind: &str, visitor: V) -> Option<V::Output> {
            $(if kind == <$stage as Stage>::KIND { return Some(visitor.visit::<$stage>()); })*
            #[cfg(feature = "synthetic")]
            if kind == crate::synthetic::Synthetic::KIND {
                return Some(visitor.visit::<crate::synthetic::Synthetic>());
            }
            None
        }
    };
}

kinds![
    crate::download::Download,
    crate::preprocess::Preprocess,
    crate::pretrain::Pretrain,
    crate::finetune::Finetune,
    crate::merge::Merge,
    crate::quantize::Quantize,
    crate::eval::Eval,
];
