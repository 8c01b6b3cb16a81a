//! What a final figure of a stage means: which end is better, its unit, and how much it matters.
//! Independent of where figures are kept or shown.

/// Which end of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// As for an accuracy.
    Higher,
    /// As for a loss.
    Lower,
    /// As for a number of images: the figure describes and does not judge.
    Neither,
}

/// How much a figure matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A result of the stage.
    Headline,
    /// Part of a result, or a circumstance such as speed.
    Detail,
}

/// A figure that a kind of stage reports with [`crate::Job::result`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Its name. A `*` stands for any text: `*_f1`.
    pub name: &'static str,
    /// Which end is better.
    pub better: Better,
    /// Its unit, such as `%`, `s` or `images`; empty for a plain number.
    pub unit: &'static str,
    /// How much it matters.
    pub role: Role,
}

impl Figure {
    /// A result of the stage.
    pub const fn headline(name: &'static str, better: Better, unit: &'static str) -> Self {
        Self { name, better, unit, role: Role::Headline }
    }

    /// A detail.
    pub const fn detail(name: &'static str, better: Better, unit: &'static str) -> Self {
        Self { name, better, unit, role: Role::Detail }
    }

    /// A number of things of which neither more nor fewer is better.
    pub const fn count(name: &'static str, unit: &'static str) -> Self {
        Self::detail(name, Better::Neither, unit)
    }

    /// The first of `figures` whose name fits `name`.
    pub fn find(figures: &'static [Self], name: &str) -> Option<&'static Self> {
        figures.iter().find(|figure| figure.fits(name))
    }

    fn fits(&self, name: &str) -> bool {
        match self.name.split_once('*') {
            Some((start, end)) => name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end)),
            None => self.name == name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_fits_counts() {
        const FIGURES: &[Figure] = &[
            Figure::headline("f1", Better::Higher, "%"),
            Figure::detail("*_f1", Better::Higher, "%"),
            Figure::count("a*a", ""),
        ];
        let found = |name: &str| Figure::find(FIGURES, name).map(|figure| figure.name);
        assert_eq!(
            ["f1", "random_f1", "_f1", "f1_", "aba", "a"].map(found),
            [Some("f1"), Some("*_f1"), Some("*_f1"), None, Some("a*a"), None]
        );
    }
}
