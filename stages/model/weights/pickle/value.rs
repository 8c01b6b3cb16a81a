//! What a list of tensors is made of, and the few functions of PyTorch's that it may call. Independent of files and opcodes.

use safetensors::Dtype;

use crate::encoding::Encoding;

use super::super::Kind;

/// The axes of a tensor. No weight of a model has more.
const MOST_AXES: usize = 8;
/// What a tensor is rebuilt from: storage, offset, shape, strides, and four things of training.
const MOST_ARGUMENTS: usize = 8;

/// A value; what is not a number is in an [`Arena`], so that nothing is nested in memory however it is nested in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Global(Global),
    Object(usize),
}

/// What the list may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// Calls one of the others, and sets attributes of Python's on what it gives.
    RebuildWithAttributes,
    /// A class of tensors.
    Class,
    Storage(Kind),
}

const GLOBALS: [(&str, &str, Global); 18] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::RebuildWithAttributes),
    ("torch", "Tensor", Global::Class),
    ("torch.nn.parameter", "Parameter", Global::Class),
    ("torch", "FloatStorage", Global::Storage(Kind::Numbers(Encoding::F32))),
    ("torch", "HalfStorage", Global::Storage(Kind::Numbers(Encoding::F16))),
    ("torch", "BFloat16Storage", Global::Storage(Kind::Numbers(Encoding::Bf16))),
    ("torch", "DoubleStorage", Global::Storage(Kind::Other(Dtype::F64))),
    ("torch", "LongStorage", Global::Storage(Kind::Other(Dtype::I64))),
    ("torch", "IntStorage", Global::Storage(Kind::Other(Dtype::I32))),
    ("torch", "ShortStorage", Global::Storage(Kind::Other(Dtype::I16))),
    ("torch", "CharStorage", Global::Storage(Kind::Other(Dtype::I8))),
    ("torch", "ByteStorage", Global::Storage(Kind::Other(Dtype::U8))),
    ("torch", "BoolStorage", Global::Storage(Kind::Other(Dtype::BOOL))),
];

impl Global {
    /// The name of a module and of what is in it, if lists of tensors need it.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        GLOBALS.into_iter().find(|(known, own, _)| (*known, *own) == (module, name)).map(|(_, _, global)| global)
    }
}

/// A value that is not a number.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Text(&'a str),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

/// Values in a file of the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) kind: Kind,
    pub(super) key: &'a str,
    /// Number of values.
    pub(super) count: usize,
}

/// Which values of a storage a tensor has.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    /// The first value.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// The distance of neighbours along each axis.
    pub(super) strides: Vec<usize>,
}

impl Tensor<'_> {
    /// Number of values; `None` if it overflows.
    pub(super) fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |count, length| count.checked_mul(*length))
    }

    /// Whether its values follow each other, the last axis first.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(length, stride)| {
            let fits = *length == 1 || *stride == expected;
            expected = expected.saturating_mul(*length);
            fits
        })
    }

    /// Checks that all values are in the storage, and that none is there twice.
    fn check(self) -> Result<Self, String> {
        let wrong = || format!("a tensor of the shape {:?} exceeds its storage", self.shape);
        let count = self.count().ok_or_else(wrong)?;
        if count == 0 {
            return Ok(self);
        }
        let steps = self.shape.iter().zip(&self.strides);
        let last = steps.clone().try_fold(self.offset, |last, (length, stride)| {
            (length - 1).checked_mul(*stride).and_then(|step| last.checked_add(step))
        });
        if count > self.storage.count || last.is_none_or(|last| last >= self.storage.count) {
            return Err(wrong());
        }
        if steps.into_iter().any(|(length, stride)| *length > 1 && *stride == 0) {
            return Err(format!("a tensor of the shape {:?} repeats its values (`expand`)", self.shape));
        }
        Ok(self)
    }
}

/// All objects of a list.
#[derive(Default)]
pub(super) struct Arena<'a>(Vec<Object<'a>>);

impl<'a> Arena<'a> {
    pub(super) fn add(&mut self, object: Object<'a>) -> Value {
        self.0.push(object);
        Value::Object(self.0.len() - 1)
    }

    /// Number of objects.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, value: Value) -> Option<&Object<'a>> {
        if let Value::Object(index) = value { self.0.get(index) } else { None }
    }

    pub(super) fn dict(&mut self, value: Value) -> Option<&mut Vec<(Value, Value)>> {
        match value {
            Value::Object(index) => match self.0.get_mut(index)? {
                Object::Dict(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn text(&self, value: Value) -> Option<&'a str> {
        if let Object::Text(text) = self.get(value)? { Some(text) } else { None }
    }

    pub(super) fn tuple(&self, value: Value) -> Option<&[Value]> {
        if let Object::Tuple(items) = self.get(value)? { Some(items) } else { None }
    }

    /// What a function makes of its arguments.
    pub(super) fn call(&mut self, function: Value, arguments: Value) -> Result<Value, String> {
        let given = self.tuple(arguments).ok_or("a call without arguments")?;
        // A long list that is given again and again would be copied each time.
        if given.len() > MOST_ARGUMENTS {
            return Err(format!("a call with {} arguments", given.len()));
        }
        let given = given.to_vec();
        match (function, &given[..]) {
            (Value::Global(Global::OrderedDict), []) => Ok(self.add(Object::Dict(Vec::new()))),
            (Value::Global(Global::RebuildTensor), [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor(*storage, *offset, *shape, *strides);
                Ok(self.add(Object::Tensor(tensor.ok_or("a tensor that is not described as one")?.check()?)))
            }
            (Value::Global(Global::RebuildParameter), [tensor, ..])
                if matches!(self.get(*tensor), Some(Object::Tensor(_))) =>
            {
                Ok(*tensor)
            }
            // Not itself, or it would go on and on.
            (
                Value::Global(Global::RebuildWithAttributes),
                [
                    rebuild @ Value::Global(Global::RebuildTensor | Global::RebuildParameter),
                    Value::Global(Global::Class),
                    given,
                    _state,
                ],
            ) => self.call(*rebuild, *given),
            (Value::Global(global), _) => Err(format!("a call of {global:?} that no list of tensors has")),
            _ => Err("a call of what is no function".into()),
        }
    }

    fn tensor(&self, storage: Value, offset: Value, shape: Value, strides: Value) -> Option<Tensor<'a>> {
        let Object::Storage(storage) = *self.get(storage)? else { return None };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        (shape.len() == strides.len()).then_some(Tensor { storage, offset: size(offset)?, shape, strides })
    }

    fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        self.tuple(value).filter(|sizes| sizes.len() <= MOST_AXES)?.iter().copied().map(size).collect()
    }

    /// The storage that a persistent id names: `('storage', type, key, device, number of values)`.
    pub(super) fn storage(&self, id: Value) -> Option<Storage<'a>> {
        let [tag, Value::Global(Global::Storage(kind)), key, _device, count] = *self.tuple(id)? else { return None };
        let is_storage = self.text(tag) == Some("storage");
        is_storage.then_some(Storage { kind, key: self.text(key)?, count: size(count)? })
    }
}

fn size(value: Value) -> Option<usize> {
    if let Value::Int(number) = value { usize::try_from(number).ok() } else { None }
}
