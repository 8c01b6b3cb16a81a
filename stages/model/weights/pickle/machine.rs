//! Reads a list of tensors in pickle, a language for a machine with a stack. Of its opcodes, those are known that `torch.save` writes
//! for tensors; of what it can name, the few functions in `value.rs`. Nothing is imported, called or looked up outside of this file's
//! own data. Source: Python's `pickletools.py`.

use std::collections::{HashMap, HashSet};

use super::value::{Arena, Global, Object, Tensor, Value};

/// Values on the stack, remembered ones, and objects.
const MOST_VALUES: usize = 1 << 20;
/// The longest text, in bytes: the name of a tensor.
const LONGEST_TEXT: usize = 4096;

/// The tensors of a list, by name.
///
/// # Errors
/// In words, if the list is damaged, or says anything but tensors.
pub(super) fn tensors(list: &[u8]) -> Result<Vec<(&str, Tensor<'_>)>, String> {
    let mut machine = Machine { rest: list, ..Machine::default() };
    let result = loop {
        let code = machine.byte()?;
        if code == b'.' {
            break machine.pop()?;
        }
        machine.step(code)?;
    };
    machine.named_tensors(result)
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    arena: Arena<'a>,
    stack: Vec<Value>,
    /// The heights of the stack at which a group of values begins.
    marks: Vec<usize>,
    remembered: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            0x80 => return self.protocol(),
            // Constants.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.number::<1>(|bytes| i64::from(bytes[0]))?,
            b'M' => self.number(|bytes| i64::from(u16::from_le_bytes(bytes)))?,
            b'J' => self.number(|bytes| i64::from(i32::from_le_bytes(bytes)))?,
            0x8a => self.long()?,
            b'X' => self.text()?,
            b'c' => self.global()?,
            // Containers.
            b'(' => self.mark()?,
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let group = self.group()?;
                self.object(Object::Tuple(group))?;
            }
            b'}' => self.object(Object::Dict(Vec::new()))?,
            b's' => {
                let pair = self.take(2)?;
                self.fill(&pair)?;
            }
            b'u' => {
                let pairs = self.group()?;
                self.fill(&pairs)?;
            }
            // What was remembered.
            b'q' => self.remember::<1>(|bytes| u32::from(bytes[0]))?,
            b'r' => self.remember(u32::from_le_bytes)?,
            b'h' => self.recall::<1>(|bytes| u32::from(bytes[0]))?,
            b'j' => self.recall(u32::from_le_bytes)?,
            // Functions.
            b'Q' => {
                let id = self.pop()?;
                let storage = self.arena.storage(id).ok_or("it names something that is no storage of a tensor")?;
                self.object(Object::Storage(storage))?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = self.arena.call(function, arguments)?;
                self.push(result)?;
            }
            b'b' => {
                // What a dictionary says of itself, such as the versions of its modules.
                let (_state, of) = (self.pop()?, self.pop()?);
                self.arena.dict(of).ok_or("it sets the state of something that is no dictionary")?;
                self.push(of)?;
            }
            b']' | b'a' | b'e' => return Err("it has a list, where only tensors by name are expected".into()),
            b'G' => return Err("it has a number, where only tensors by name are expected".into()),
            other => return Err(format!("it has the pickle opcode {other:#04x}, which no list of tensors needs")),
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.byte()? {
            2 => Ok(()),
            other => Err(format!("it has pickle's protocol {other}: save it with the usual one of `torch.save`, 2")),
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (now, rest) = self.rest.split_at_checked(count).ok_or("it ends in the middle")?;
        self.rest = rest;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (now, rest) = self.rest.split_first_chunk().ok_or("it ends in the middle")?;
        self.rest = rest;
        Ok(*now)
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.stack.len() >= MOST_VALUES || self.arena.len() > MOST_VALUES {
            return Err(format!("it has more than {MOST_VALUES} values"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn object(&mut self, object: Object<'a>) -> Result<(), String> {
        let value = self.arena.add(object);
        self.push(value)
    }

    /// Takes the top value of the current group.
    fn pop(&mut self) -> Result<Value, String> {
        self.take(1).map(|values| values[0])
    }

    /// Takes the top values of the current group, the lowest first.
    fn take(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor);
        Ok(self.stack.split_off(from.ok_or("it takes more values than there are")?))
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() >= MOST_VALUES {
            return Err(format!("it begins more than {MOST_VALUES} groups"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Takes the values since the last mark.
    fn group(&mut self) -> Result<Vec<Value>, String> {
        let from = self.marks.pop().ok_or("it ends a group that it did not begin")?;
        Ok(self.stack.split_off(from))
    }

    fn number<const N: usize>(&mut self, value: impl Fn([u8; N]) -> i64) -> Result<(), String> {
        let bytes = self.array()?;
        self.push(Value::Int(value(bytes)))
    }

    /// A whole number of any length, little-endian; here of at most eight bytes.
    fn long(&mut self) -> Result<(), String> {
        let length = usize::from(self.byte()?);
        let bytes = self.bytes(length)?;
        if length > 8 {
            return Err("it has a number of more than 64 bits".into());
        }
        let sign = if bytes.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 };
        let mut all = [sign; 8];
        all[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn text(&mut self) -> Result<(), String> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > LONGEST_TEXT {
            return Err(format!("it has a text of {length} bytes, and at most {LONGEST_TEXT} are read"));
        }
        let text = std::str::from_utf8(self.bytes(length)?).map_err(|_| "it has a text that is not UTF-8")?;
        self.object(Object::Text(text))
    }

    /// A module and a name in it, each on a line.
    fn global(&mut self) -> Result<(), String> {
        let (module, name) = (self.line()?, self.line()?);
        let Some(global) = Global::named(module, name) else {
            let name: String = format!("{module}.{name}").chars().take(80).collect();
            return Err(format!(
                "it asks for {name:?}, which is not part of a tensor and can do anything when PyTorch opens the file. Nothing of it \
                 was run. Save only the model's `state_dict()`"
            ));
        };
        self.push(Value::Global(global))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end =
            self.rest.iter().take(LONGEST_TEXT).position(|byte| *byte == b'\n').ok_or("it names something endless")?;
        let line = self.bytes(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "it has a name that is not UTF-8".into())
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let items = self.take(count)?;
        self.object(Object::Tuple(items))
    }

    /// Adds pairs of key and value to the dictionary below them.
    fn fill(&mut self, pairs: &[Value]) -> Result<(), String> {
        let to = self.pop()?;
        let (pairs, odd) = pairs.as_chunks::<2>();
        let items = self.arena.dict(to).filter(|_| odd.is_empty()).ok_or("it fills something that is no dictionary")?;
        items.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        if items.len() > MOST_VALUES {
            return Err(format!("it has more than {MOST_VALUES} values"));
        }
        self.push(to)
    }

    fn remember<const N: usize>(&mut self, number: impl Fn([u8; N]) -> u32) -> Result<(), String> {
        let number = number(self.array()?);
        let top = self.pop()?;
        self.push(top)?;
        if self.remembered.len() >= MOST_VALUES {
            return Err(format!("it remembers more than {MOST_VALUES} values"));
        }
        self.remembered.insert(number, top);
        Ok(())
    }

    fn recall<const N: usize>(&mut self, number: impl Fn([u8; N]) -> u32) -> Result<(), String> {
        let number = number(self.array()?);
        let value = self.remembered.get(&number).copied().ok_or("it recalls what it did not remember")?;
        self.push(value)
    }

    fn named_tensors(&mut self, result: Value) -> Result<Vec<(&'a str, Tensor<'a>)>, String> {
        let items = std::mem::take(self.arena.dict(result).ok_or("it is no dictionary of tensors")?);
        // A name is a few bytes in the list however often it is recalled, and many in memory.
        let mut seen = HashSet::new();
        items
            .into_iter()
            .map(|(key, value)| {
                let name = self.arena.text(key).ok_or("it has a key that is no text")?;
                if !seen.insert(name) {
                    return Err(format!("it has the tensor {name:?} twice"));
                }
                match self.arena.get(value) {
                    Some(Object::Tensor(tensor)) => Ok((name, tensor.clone())),
                    _ => Err(format!(
                        "{name:?} in it is not a tensor: this is a checkpoint of a training, or something else. Save only the model's \
                         `state_dict()`"
                    )),
                }
            })
            .collect()
    }
}
