//! The table of kinds, above all of them.
//! Independent of who runs them.

use crate::{
    Stage,
    contract::{figure::Figure, published::PublishedTable, setting::Setting},
};

/// Code to run with the type of a kind that is known by name only.
pub trait KindVisitor {
    /// What comes back.
    type Output;
    /// Called with the type of the kind.
    fn visit<S: Stage>(self) -> Self::Output;
}

/// What a figure of a kind means; `None` if the kind is unknown or does not declare the figure.
pub fn figure(kind: &str, name: &str) -> Option<&'static Figure> {
    struct Figures;
    impl KindVisitor for Figures {
        type Output = &'static [Figure];

        fn visit<S: Stage>(self) -> Self::Output {
            S::FIGURES
        }
    }
    Figure::find(visit(kind, Figures)?, name)
}

/// The machine's settings for all kinds.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().copied().flatten()
}

/// The tables of published results of all kinds.
pub fn tables() -> impl Iterator<Item = &'static PublishedTable> {
    TABLES.iter().copied().flatten().copied()
}

macro_rules! kinds {
    ($($stage:ty),* $(,)?) => {
        /// The names of all kinds, in the order of a usual pipeline.
        pub const KINDS: &[&str] = &[$(<$stage as Stage>::KIND),*];

        const SETTINGS: &[&[Setting]] = &[$(<$stage as Stage>::SETTINGS),*];
        const TABLES: &[&[&PublishedTable]] = &[$(<$stage as Stage>::TABLES),*];

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
