//! The table of all kinds.
//! Independent of who runs them.

use crate::{
    Stage,
    contract::{figure::Figure, published::PublishedTable, setting::Setting},
};

/// Code to run with the type of a kind that is known by name only.
pub trait KindVisitor {
    /// The result.
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
    crate::command::Command,
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fmt::Write, path::Path};

    use super::*;
    use crate::contract::{figure::Better, job::Runtime, keys::Key};

    const HEAD: &str = "# Keys

What can stand in the table of a stage, by its `kind`. `imp-flow kinds KIND` says the same. A key without a default may be
left out unless it is required.

This page is made from the declarations in `stages/`; `UPDATE_DOCS=1 cargo test -p imp-stages the_page_of_keys` writes it.
";

    struct Page;

    impl KindVisitor for Page {
        type Output = String;

        fn visit<S: Stage>(self) -> String {
            let mut text = format!("\n## {}\n\n`kind = \"{0}\"` {}.\n", S::KIND, S::ABOUT);
            if !S::INPUTS.is_empty() {
                text += "\n| input | a stage that gives | |\n|---|---|---|\n";
            }
            for input in S::INPUTS {
                let more = match (input.required, input.many) {
                    (true, false) => "required",
                    (true, true) => "required; one or a list",
                    (false, true) => "a list",
                    (false, false) => "",
                };
                let _ = writeln!(text, "| `{}` | {} | {more} |", input.name, input.about);
            }
            text + &table(&S::keys())
        }
    }

    fn table(keys: &[Key]) -> String {
        let mut text = "\n| key | value | default | meaning |\n|---|---|---|---|\n".to_string();
        for key in keys {
            let default = key.default.as_ref().map(|value| format!("`{value}`"));
            let default = default.unwrap_or_else(|| if key.required { "required".into() } else { String::new() });
            let _ = writeln!(text, "| `{}` | {} | {default} | {} |", key.name, key.value, key.about);
        }
        text
    }

    #[test]
    fn the_page_of_keys_is_what_the_kinds_say() {
        let mut page = HEAD.to_string();
        for kind in KINDS {
            page += &visit(kind, Page).unwrap();
        }
        page += "\n## Every kind\n\n`seed` is an integer, by default the pipeline's. The table `[stages.NAME.runtime]` does not affect the \
                 result:\n";
        page += &table(&Runtime::all_keys());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/KEYS.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == page,
            "docs/KEYS.md is out of date: set UPDATE_DOCS=1 to write it"
        );
    }

    #[test]
    fn every_key_is_read_and_says_what_it_means() {
        struct Check;
        impl KindVisitor for Check {
            type Output = ();
            fn visit<S: Stage>(self) {
                for key in S::keys() {
                    assert!(!key.value.is_empty() && !key.about.is_empty(), "{}: {key:?}", S::KIND);
                }
                assert!(!S::keys().is_empty(), "{} has no keys", S::KIND);
            }
        }
        for kind in KINDS {
            visit(kind, Check).unwrap();
        }
    }

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
