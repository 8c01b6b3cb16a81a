//! The real pipelines without the internet: a server in this process replaces the hub and the image servers. It serves tiny
//! models with random weights and a tiny data set under the real names, in the real formats.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Cursor, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
};

use serde_json::{Value, json};

use crate::{
    benchmarks::{self, GQA_IMAGE, TEXTVQA_IMAGE},
    support::Space,
};

/// Built-in sources that replace the originals.
const TINY: &str = r#"
[stages.llm]
kind = "download"
source = "builtin:FAMILY"
model = { hidden_size = 32, layers = 2, heads = 2 }
[stages.siglip]
kind = "download"
source = "builtin:tiny-siglip"
[stages.shapes]
kind = "download"
source = "builtin:shapes"
images = 12
eval_images = 1
"#;

/// Path -> content.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A language model: its name on the hub, the pipelines' commit, and the tiny model that replaces it.
struct Llm(&'static str, &'static str, &'static str);

const PHI_2: Llm = Llm("microsoft/phi-2", "d3186761bf5c4409f7679359284066c25ab668ee", "tiny-phi");

#[test]
fn v1_3b_completes_and_can_be_finetuned_on_the_users_data() {
    let (space, args, address) = completes("v1_3b", "imp-v1-3b", &PHI_2);
    sweep_shares_with_what_has_run(&space, &args, &address);
    let artifacts = space.path("artifacts");
    let mut files = Files::new();
    repository(&mut files, "MILVLG/imp-v1-3b", "main", &folder(&artifacts.join("imp-v1-3b/merge")));
    let address = serve(files);
    fs::create_dir_all(space.path("mine/images")).unwrap();
    for (name, bytes) in folder(&artifacts.join("tiny/shapes/images")) {
        fs::write(space.path("mine/images").join(name), bytes).unwrap();
    }
    fs::copy(artifacts.join("tiny/shapes/instruct.json"), space.path("mine/train.json")).unwrap();
    let pipeline = pipeline("finetune_custom");
    let sets = ["stages.mine.source=mine", "stages.finetune.epochs=3"];
    let args: Vec<&str> =
        ["run", &pipeline].into_iter().chain(sets.into_iter().flat_map(|set| ["--set", set])).collect();
    let output = run(&space, &args, &address);
    assert!(output.contains("finetune-custom is done: 6 ran, 0 cached"), "{output}");
    assert!(!space.path("artifacts/finetune-custom/records/rejected.jsonl").exists());
}

#[test]
fn v1_5_3b_completes() {
    completes("v1_5_3b", "imp-v1.5-3b", &PHI_2);
}

#[test]
fn v1_5_3b_196_completes() {
    let (space, ..) = completes("v1_5_3b_196", "imp-v1.5-3b-196", &PHI_2);
    let config = space.read("artifacts/imp-v1.5-3b-196/quantize/config.json");
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["vision_tower_config"]["image_size"], 196);
}

#[test]
fn v1_5_2b_completes() {
    completes(
        "v1_5_2b",
        "imp-v1.5-2b",
        &Llm("Qwen/Qwen1.5-1.8B", "7846de7ed421727b318d6605a0bfab659da2c067", "tiny-qwen2"),
    );
}

#[test]
fn v1_5_4b_completes() {
    completes(
        "v1_5_4b",
        "imp-v1.5-4b",
        &Llm("microsoft/Phi-3-mini-4k-instruct", "ff07dc01615f8113924aed013115ab2abd32115b", "tiny-phi3"),
    );
}

#[test]
fn the_other_pipelines_are_valid() {
    let space = Space::new();
    // Of 52 stages, 20 depend on how and on what is finetuned, 22 on the encoder (or are the encoder) and 24 on the language model.
    // Each further value adds as many stages.
    for (file, name, stages) in [
        ("sweeps/finetuning", "imp-finetuning", 52 + 3 * 20),
        ("sweeps/epochs", "imp-epochs", 52 + 2 * 20),
        ("sweeps/data", "imp-data", 52 + 21),
        ("sweeps/vision_encoder", "imp-vision-encoder", 52 + 22),
        ("sweeps/llm", "imp-llm", 52 + 3 * 24),
        // Two files, and for each two scores.
        ("sweeps/precision", "imp-precision", 52 + 2 + 2 * 2),
    ] {
        let plan = offline(&space, &["sweep", "--dry-run", &pipeline(file)]);
        assert!(plan.contains(&format!("{name}: 0 of {stages} cached")), "{plan}");
    }
    space.write("mine/train.json", "[]");
    offline(&space, &["plan", &pipeline("finetune_custom"), "--set", "stages.mine.source=mine"]);
}

fn pipeline(name: &str) -> String {
    format!("{}/pipelines/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

/// What is finetuned is shared, and of rank 256, which the pipeline itself has, also what follows: two steps are the same in one
/// epoch and in two. The study shows them beside the report's.
fn sweep_shares_with_what_has_run(space: &Space, args: &[String], address: &str) {
    let file = pipeline("sweeps/finetuning");
    let args: Vec<&str> = ["sweep", &file].into_iter().chain(args[2..].iter().map(String::as_str)).collect();
    let output = run(space, &args, address);
    assert!(output.contains("imp-finetuning is done: 61 ran, 51 cached"), "{output}");
    let table = space.succeed(&["compare"]).stdout;
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].ends_with("  vars.lora_rank"), "{table}");
    assert!(rows[1].starts_with("full  ") && rows[2].starts_with("lora-128  "), "{table}");
    let study: Vec<&str> = ["report", "study", &file].into_iter().chain(args[2..].iter().copied()).collect();
    let study = space.succeed(&study).stdout;
    let line = |setting: &str, source: &str| {
        let begins = |line: &&str| line.starts_with(setting) && line[setting.len()..].trim_start().starts_with(source);
        study.lines().find(begins).unwrap_or_else(|| panic!("{setting} {source}: {study}"))
    };
    for method in ["full", "lora-128", "lora-256", "lora-512"] {
        line(method, "published");
        assert!(!line(method, "measured here: merge").ends_with(" -"), "there is a mean: {study}");
        line(method, "measured here: quantize");
    }
    assert!(line("epochs=3", "published").contains(" 81.5 ") && line("epochs=3", "not run").ends_with(" -"), "{study}");
}

/// Runs a pipeline. Returns its folder, its arguments, and the address of its hub.
fn completes(file: &str, name: &str, llm: &Llm) -> (Space, Vec<String>, String) {
    let space = Space::new();
    space.write("tiny.toml", TINY.replace("FAMILY", llm.2)).succeed(&["run", "tiny.toml"]);
    let tiny = space.path("artifacts/tiny");
    let mut files = originals(&tiny, llm);
    let picture = fs::read(tiny.join("shapes/images/000000000000.png")).unwrap();
    let benchmarks = benchmarks::downloads(&picture);
    for (stage, (file, content)) in &benchmarks {
        files.insert(format!("/{stage}/{file}"), content.clone());
    }
    let address = serve(files);
    let mut args = vec!["run".to_string(), pipeline(file)];
    let sets = [
        "stages.pretrain.global_batch_size=4".into(),
        "stages.pretrain.max_steps=2".into(),
        "stages.finetune.global_batch_size=4".into(),
        "stages.finetune.max_steps=2".into(),
        format!("stages.coco.source={address}/coco/train2017.zip"),
        format!("stages.gqa.source={address}/gqa/images.zip"),
        format!("stages.textvqa.source={address}/textvqa/train_val_images.zip"),
        format!("stages.visual_genome_1.source={address}/vg/images.zip"),
        format!("stages.visual_genome_2.source={address}/vg/images2.zip"),
    ];
    let sources = benchmarks.iter().map(|(stage, (file, _))| format!("stages.{stage}.source={address}/{stage}/{file}"));
    args.extend(sets.into_iter().chain(sources).flat_map(|set| ["--set".into(), set]));
    let all = args;
    let mut args: Vec<&str> = all.iter().map(String::as_str).collect();
    args[0] = "plan";
    plan_shows_the_resources(&space, &args, &address);
    args[0] = "run";
    let first = run(&space, &args, &address);
    assert!(first.contains(&format!("{name} is done: 52 ran, 0 cached")), "{first}");
    let rejected = space.path(&format!("artifacts/{name}/instructions/rejected.jsonl"));
    assert!(!rejected.exists(), "every image must be found in its folder");
    assert!(space.path(&format!("artifacts/{name}/merge/model.safetensors")).is_file());
    let outputs = [
        ("eval_vqav2", "answers.jsonl"),
        ("eval_vqav2_testdev", "upload.json"),
        ("eval_gqa", "testdev_balanced_predictions.json"),
        ("eval_vizwiz", "answers.jsonl"),
        ("eval_vizwiz_test", "upload.json"),
        ("eval_scienceqa", "answers.jsonl"),
        ("eval_textvqa", "answers.jsonl"),
        ("eval_pope", "answers.jsonl"),
        ("eval_mme", "answers.jsonl"),
        ("eval_mmbench", "upload.xlsx"),
        ("eval_mmvet", "upload.json"),
    ];
    for (stage, file) in outputs {
        assert!(space.path(&format!("artifacts/{name}/{stage}/{file}")).is_file(), "{stage}");
    }
    assert_table(&space, name, &args, &first);
    // Once everything is cached, nothing is requested.
    let again = run(&space, &args, "http://127.0.0.1:1");
    assert!(again.contains(&format!("{name} is up to date: 52 of 52 cached")), "{again}");
    (space, all, address)
}

/// Before anything is downloaded, the plan has the sizes from the hub and the servers.
fn plan_shows_the_resources(space: &Space, args: &[&str], address: &str) {
    let json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let stages = |output: &str| -> BTreeMap<String, Value> {
        let lines = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| (line["stage"].as_str().unwrap().to_string(), line)).collect()
    };
    let known = stages(&run(space, &json, address));
    let bytes: usize = folder(&space.path("artifacts/tiny/llm")).values().map(Vec::len).sum();
    assert_eq!(known["llm"]["download"], bytes);
    let images = folder(&space.path("artifacts/tiny/shapes/images")).values().map(Vec::len).sum::<usize>() as u64;
    for url in ["coco", "gqa", "textvqa", "visual_genome_1", "visual_genome_2", "ocr_vqa", "llava_pretrain"] {
        assert!(known[url]["download"].as_u64().unwrap() > images, "{url}: {}", known[url]);
    }
    for stage in ["pretrain", "finetune"] {
        assert!(known[stage]["memory"].as_u64() > Some(20_000_000), "{}", known[stage]);
        assert_eq!((&known[stage]["memory_at_most"], &known[stage]["steps"]), (&json!(true), &json!(2)));
    }
    let text = run(space, args, address);
    assert!(text.contains(" of memory, 2 steps") && text.contains(" to download"), "{text}");
    // Offline, the sizes are unknown.
    let unknown = stages(&offline(space, &json));
    assert!(unknown.values().all(|stage| stage["download"].is_null() && stage["memory"].is_null()), "{unknown:?}");
}

/// Runs the program without a network.
fn offline(space: &Space, args: &[&str]) -> String {
    let output = space.command(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", space.path("hf")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The run and `report eval` show the same table. The model has all figures except that of `MM-Vet`, which needs a judge.
fn assert_table(space: &Space, name: &str, args: &[&str], run: &str) {
    let args = [&["report", "eval"], &args[1..]].concat();
    let table = space.succeed(&args).stdout;
    assert!(run.ends_with(&table), "{run}\n{table}");
    let cells = |model: &str| -> Vec<&str> {
        let row = table.lines().find(|line| line.split(' ').next() == Some(model));
        row.unwrap().split_whitespace().skip(1).collect()
    };
    assert_eq!(cells("Imp-v1-3B")[1..4], ["79.45", "58.55", "50.09"]);
    let (merged, quantized) = (format!("{name}/merge"), format!("{name}/quantize"));
    let ours = cells(&merged);
    assert_eq!((ours.len(), ours[8]), (9, "-"), "{table}");
    // In 4 bits: VQAv2, VizWiz and MM-Vet are left out.
    assert_eq!(cells(&quantized).iter().filter(|cell| **cell != "-").count(), 6, "{table}");
    let report: Value = serde_json::from_str(&space.succeed(&[&args[..], &["--json"]].concat()).stdout).unwrap();
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["model"] == merged.as_str()).unwrap();
    assert_eq!(format!("{:.2}", row["figures"]["pope"].as_f64().unwrap()), ours[5]);
    assert_eq!(row["figures"]["mmvet"], Value::Null);
}

/// Runs the program with the hub at `endpoint`. Returns its output.
fn run(space: &Space, args: &[&str], endpoint: &str) -> String {
    let output = space.command(args).env("HF_ENDPOINT", endpoint).env("HF_HOME", space.path("hf")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The files in a folder, by name.
fn folder(path: &Path) -> Files {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// All files that the pipelines download, made from tiny artifacts.
fn originals(tiny: &Path, llm: &Llm) -> Files {
    let mut files = Files::new();
    repository(&mut files, llm.0, llm.1, &folder(&tiny.join("llm")));
    let commit = "7067f6db2baa594bab7c6d965fe488c7ac62f1c8";
    repository(&mut files, "google/siglip-so400m-patch14-384", commit, &folder(&tiny.join("siglip")));

    let mut images = folder(&tiny.join("shapes/images"));
    let picture = images["000000000000.png"].clone();
    repository(&mut files, "datasets/darkyarding/MME", "main", &benchmarks::mme(&picture));
    for name in [GQA_IMAGE, TEXTVQA_IMAGE] {
        images.insert(format!("{name}.jpg"), picture.clone());
    }
    let annotations = |name: &str| -> Vec<Value> {
        serde_json::from_slice(&fs::read(tiny.join("shapes").join(name)).unwrap()).unwrap()
    };
    let below = |folder: &str| archive(images.iter().map(|(name, bytes)| (format!("{folder}/{name}"), bytes)));
    let captions = moved(annotations("pretrain.json"), &["00000"]);
    let pretrain =
        Files::from([("blip_laion_cc_sbu_558k.json".into(), captions), ("images.zip".into(), below("00000"))]);
    repository(&mut files, "datasets/liuhaotian/LLaVA-Pretrain", "70f9d1e5e1a697fe35830875cfc7de1dd590d727", &pretrain);
    let folders =
        ["coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2"];
    let instruct = moved(annotations("instruct.json"), &folders);
    let instruct = Files::from([("llava_v1_5_mix665k.json".into(), instruct), ("README.md".into(), b"x".to_vec())]);
    repository(
        &mut files,
        "datasets/liuhaotian/LLaVA-Instruct-150K",
        "9d451dc7629cfe0469f6ae4432b765cd603d5fcb",
        &instruct,
    );
    let ocr = Files::from([("ocr_vqa.zip".into(), below("images"))]);
    repository(&mut files, "datasets/qnguyen3/ocr_vqa", "main", &ocr);
    for (path, inside) in [
        ("/coco/train2017.zip", "train2017"),
        ("/gqa/images.zip", "images"),
        ("/textvqa/train_val_images.zip", "train_images"),
        ("/vg/images.zip", "VG_100K"),
        ("/vg/images2.zip", "VG_100K_2"),
    ] {
        files.insert(path.into(), below(inside));
    }
    files
}

/// The records with their images in `folders`, in turn.
fn moved(mut records: Vec<Value>, folders: &[&str]) -> Vec<u8> {
    for (record, folder) in records.iter_mut().zip(folders.iter().cycle()) {
        if let Some(image) = record.get("image").and_then(Value::as_str) {
            record["image"] = format!("{folder}/{image}").into();
        }
    }
    serde_json::to_vec(&records).unwrap()
}

pub(crate) fn archive<'a>(entries: impl Iterator<Item = (String, &'a Vec<u8>)>) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Adds a repository in the hub's layout.
fn repository(files: &mut Files, name: &str, revision: &str, content: &Files) {
    let commit = if revision == "main" { "0123456789abcdef0123456789abcdef01234567" } else { revision };
    let siblings: Vec<Value> =
        content.iter().map(|(file, bytes)| json!({"rfilename": file, "size": bytes.len()})).collect();
    let kind = if name.starts_with("datasets/") { "" } else { "models/" };
    let info = json!({"sha": commit, "siblings": siblings}).to_string();
    files.insert(format!("/api/{kind}{name}/revision/{revision}"), info.into());
    for (file, bytes) in content {
        files.insert(format!("/{name}/resolve/{commit}/{file}"), bytes.clone());
    }
}

/// Serves `files` until the process ends. Returns the address.
pub(crate) fn serve(files: Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let files = files.clone();
            // A client that hangs up is not an error of the server.
            thread::spawn(move || drop(answer(&stream.unwrap(), &files)));
        }
    });
    address
}

fn answer(mut stream: &TcpStream, files: &Files) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, body) = files.get(path).map_or(("404 Not Found", &[][..]), |body| ("200 OK", body));
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)
}
