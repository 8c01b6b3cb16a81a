//! Writes files as `torch.save` does, for tests of whole folders. `fixtures/torch` has files of PyTorch itself.

use std::{
    collections::HashMap,
    io::{Cursor, Write},
    path::Path,
};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use imp_model::weights::TensorFiles;

/// A tensor in f32: name, shape, values.
pub(crate) type Tensor = (String, Vec<usize>, Vec<f32>);

/// All tensors in a file or folder, by name.
pub(crate) fn contents(files: &TensorFiles) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let read = |name: &str| {
        let shape = files.shape(name).unwrap().to_vec();
        let values = files.mat(name, &shape, 1, shape.iter().product()).unwrap().to_host().into_owned();
        (name.to_string(), (shape, values))
    };
    files.names().map(read).collect()
}

/// Writes what is in a file or folder of safetensors to a file of PyTorch's; `keep` selects and renames tensors.
pub(crate) fn convert(from: &TensorFiles, to: &Path, keep: impl Fn(&str) -> Option<String>) {
    let mut tensors: Vec<Tensor> =
        contents(from).into_iter().filter_map(|(name, (shape, values))| Some((keep(&name)?, shape, values))).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    std::fs::write(to, save(&tensors)).unwrap();
}

/// The bytes of a file with these tensors.
pub(crate) fn save(tensors: &[Tensor]) -> Vec<u8> {
    let mut list = b"\x80\x02}(".to_vec();
    for (number, (name, shape, values)) in tensors.iter().enumerate() {
        text(&mut list, name);
        list.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut list, "storage");
        list.extend(b"ctorch\nFloatStorage\n");
        text(&mut list, &number.to_string());
        text(&mut list, "cpu");
        integer(&mut list, values.len());
        list.extend(b"tQK\x00(");
        for length in shape {
            integer(&mut list, *length);
        }
        list.extend(b"t(");
        for axis in 1..=shape.len() {
            integer(&mut list, shape[axis..].iter().product());
        }
        list.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    list.extend(b"u.");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("data.pkl", &list);
    add("byteorder", b"little");
    for (number, (_, _, values)) in tensors.iter().enumerate() {
        add(&format!("data/{number}"), &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    zip.finish().unwrap().into_inner()
}

fn text(list: &mut Vec<u8>, text: &str) {
    list.push(b'X');
    list.extend((text.len() as u32).to_le_bytes());
    list.extend(text.as_bytes());
}

fn integer(list: &mut Vec<u8>, value: usize) {
    list.push(b'J');
    list.extend((value as i32).to_le_bytes());
}
