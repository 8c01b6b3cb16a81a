//! What an image shows, and which scenes are held out from training. Independent of pixels and questions.

use super::dice::Dice;

/// The colour of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
}

/// The outline of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
}

/// A quarter of the image; an object fills one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    TopLeft,
    TopRight,
    BottomLeft,
    BottomRight,
}

impl Colour {
    pub(super) const ALL: [Self; 4] = [Self::Red, Self::Green, Self::Blue, Self::Yellow];

    pub(super) fn name(self) -> &'static str {
        ["red", "green", "blue", "yellow"][self as usize]
    }

    pub(super) fn rgb(self) -> [u8; 3] {
        [[220, 40, 40], [40, 190, 60], [50, 80, 230], [230, 210, 50]][self as usize]
    }
}

impl Shape {
    pub(super) const ALL: [Self; 3] = [Self::Circle, Self::Square, Self::Triangle];

    pub(super) fn name(self) -> &'static str {
        ["circle", "square", "triangle"][self as usize]
    }

    pub(super) fn plural(self) -> &'static str {
        ["circles", "squares", "triangles"][self as usize]
    }
}

impl Cell {
    pub(super) const ALL: [Self; 4] = [Self::TopLeft, Self::TopRight, Self::BottomLeft, Self::BottomRight];

    pub(super) fn name(self) -> &'static str {
        ["top left", "top right", "bottom left", "bottom right"][self as usize]
    }
}

/// Colour and shape: the "object" in POPE's questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) colour: Colour,
    pub(super) shape: Shape,
}

impl Kind {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Colour::ALL.into_iter().flat_map(|colour| Shape::ALL.into_iter().map(move |shape| Self { colour, shape }))
    }

    pub(super) fn name(self) -> String {
        format!("{} {}", self.colour.name(), self.shape.name())
    }

    /// The cell in which training images never show this kind.
    ///
    /// Each of the 12 kinds is held out in one of the four cells, and each cell holds out three kinds. A model that answers
    /// questions about them has learnt colour, shape and position separately instead of memorising combinations. No kind
    /// is held out altogether: a model would learn from its absence to deny it.
    pub(super) fn held_out_cell(self) -> Cell {
        Cell::ALL[(self.colour as usize + self.shape as usize) % 4]
    }
}

/// An object in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    pub(super) cell: Cell,
    pub(super) kind: Kind,
}

impl Object {
    pub(super) fn held_out(self) -> bool {
        self.kind.held_out_cell() == self.cell
    }
}

/// One to three objects, each in its own cell, in the order of the cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) objects: Vec<Object>,
}

impl Scene {
    /// A random scene without held-out objects.
    pub(super) fn training(dice: &mut Dice) -> Self {
        Self::draw(dice, None)
    }

    /// Evaluation scene `number`, with at least one held-out object; consecutive scenes cycle through all of them.
    pub(super) fn evaluation(number: usize, dice: &mut Dice) -> Self {
        let kind =
            Kind::all().nth(number % Kind::all().count()).unwrap_or(Kind { colour: Colour::Red, shape: Shape::Circle });
        Self::draw(dice, Some(Object { cell: kind.held_out_cell(), kind }))
    }

    fn draw(dice: &mut Dice, given: Option<Object>) -> Self {
        let count = 1 + dice.below(3);
        let mut objects: Vec<Object> = given.into_iter().collect();
        let cells = dice.shuffled(Cell::ALL.into_iter().filter(|cell| given.is_none_or(|object| object.cell != *cell)));
        for cell in cells.into_iter().take(count - objects.len()) {
            loop {
                let kind = Kind { colour: dice.pick(&Colour::ALL), shape: dice.pick(&Shape::ALL) };
                let object = Object { cell, kind };
                if given.is_some() || !object.held_out() {
                    objects.push(object);
                    break;
                }
            }
        }
        objects.sort_unstable();
        Self { objects }
    }

    /// The distinct kinds of its objects.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.objects.iter().map(|object| object.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    pub(super) fn has(&self, kind: Kind) -> bool {
        self.objects.iter().any(|object| object.kind == kind)
    }

    /// The object for which `test` holds, if there is exactly one.
    pub(super) fn only(&self, test: impl Fn(&Object) -> bool) -> Option<Object> {
        let mut found = self.objects.iter().filter(|object| test(object));
        let first = found.next()?;
        found.next().is_none().then_some(*first)
    }

    pub(super) fn count(&self, test: impl Fn(&Object) -> bool) -> usize {
        self.objects.iter().filter(|object| test(object)).count()
    }
}
