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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::figure::Better;

    #[test]
    fn a_figure_is_described_by_its_kind_and_name() {
        let better = |kind: &str, name: &str| figure(kind, name).map(|figure| figure.better);
        assert_eq!(better("finetune", "loss"), Some(Better::Lower));
        assert_eq!(better("eval", "random_f1"), Some(Better::Higher));
        assert_eq!(better("preprocess", "images"), Some(Better::Neither));
        assert_eq!(better("merge", "loss"), None);
        assert_eq!(better("unheard_of", "loss"), None);
    }

    #[test]
    fn settings_and_tables_have_names_of_their_own() {
        let keys: Vec<&str> = settings().map(|setting| setting.key).collect();
        let tables: Vec<&str> = tables().map(|table| table.name).collect();
        for names in [keys, tables] {
            assert!(!names.is_empty());
            assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1), "{names:?}");
        }
    }
}
