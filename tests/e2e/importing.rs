//! `imp-flow import llava`: pipelines from training scripts, which are read and never run.

use crate::support::Space;

/// Stage 2 with LoRA, in the manner of such scripts.
const LORA: &str = r#"#!/bin/bash
touch WAS-RUN
LLM=my_llm
DATA="my data"
deepspeed --include localhost:0,1,2 --master_port 29600 llava/train/train_mem.py \
    --lora_enable True --lora_r 64 --lora_alpha 32 --mm_projector_lr 3e-5 \
    --deepspeed ./zero3.json \
    --model_name_or_path ${LLM} --version phi2 \
    --data_path "$DATA/mix.json" --image_folder "$DATA/pictures" \
    --vision_tower my_siglip \
    --pretrain_mm_mlp_adapter ./out/mm_projector.bin \
    --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
    --image_aspect_ratio pad --group_by_modality_length True --fp16 True \
    --output_dir $(touch WAS-RUN)/out \
    --num_train_epochs 2 --per_device_train_batch_size 4 --gradient_accumulation_steps 8 \
    --learning_rate 1e-4 --weight_decay 0. --warmup_ratio 0.05 --lr_scheduler_type "cosine" \
    --logging_steps 5 --model_max_length 1024 --gradient_checkpointing True \
    --neftune_noise_alpha 5 --mm_patch_merge_type flat --mm_vision_tower_lr 2e-6 --report_to `touch WAS-RUN`
"#;

#[test]
fn what_is_not_read_of_a_script_is_said() {
    let space = Space::new();
    let script = "python llava/train/train.py --model_name_or_path m --data_path d.json \"${more[@]}\" > log 2>&1\npython train.py --x 1\n";
    space.write("t.sh", script);
    let told = space.succeed(&["import", "llava", "t.sh"]).stderr;
    assert!(told.contains("line 1: `${more[@]}` is not understood: the flags in it are missing"), "{told}");
    assert!(told.contains("line 2 starts another training, which is left out"), "{told}");
}

#[test]
fn the_gpus_of_one_machine_become_those_of_the_stage() {
    let space = Space::new();
    let script = "cat > other.sh <<EOF\npython train.py --model_name_or_path other\nEOF\n\
                  deepspeed --num_nodes 2 --num_gpus 4 train.py --model_name_or_path m --data_path d.json\n";
    space.write("t.sh", script);
    let output = space.succeed(&["import", "llava", "t.sh"]);
    for line in [
        "global_batch_size = 64  # 8 on each of 8 GPUs, 1 accumulated",
        "runtime.gpus = 4  # fewer give the same result",
    ] {
        assert!(output.stdout.lines().any(|found| found == line), "{line} is not in\n{}", output.stdout);
    }
    assert!(output.stderr.contains("8 GPUs of several machines: a stage has those of one, 4"), "{}", output.stderr);
    assert!(output.stderr.contains("line 1: what follows is text for a program"), "{}", output.stderr);
    let assumed =
        space.write("u.sh", "python train.py --model_name_or_path m --data_path d").run(&["import", "llava", "u.sh"]);
    assert!(!assumed.stdout.contains("runtime.gpus"), "nobody has said it: {}", assumed.stdout);
}

#[test]
fn a_clip_is_downloaded_as_it_is_published() {
    let space = Space::new();
    space.write(
        "t.sh",
        "python train.py --model_name_or_path m --data_path d --tune_mm_mlp_adapter True --vision_tower openai/clip-vit-large-patch14-336\n",
    );
    let text = space.succeed(&["import", "llava", "t.sh"]).stdout;
    assert!(text.contains("files = [\"*.json\", \"pytorch_model.bin\"]"), "{text}");
}

#[test]
fn a_script_becomes_a_pipeline_that_can_be_planned() {
    let space = Space::new();
    space.write("lora.sh", LORA);
    let output = space.succeed(&["import", "llava", "lora.sh", "-o", "p.toml"]);
    assert!(!space.path("WAS-RUN").exists(), "no part of the script runs");
    let text = space.read("p.toml");
    for line in [
        "name = \"lora\"",
        "seed = 42",
        "source = \"my data/mix.json\"  # relative to this file",
        "images = [\"images\"]",
        "template = \"phi2\"",
        "image_aspect_ratio = \"pad\"",
        "max_length = 1024",
        "model = \"joined\"",
        "source = \"./out\"  # relative to this file",
        "mode = \"lora\"",
        "projector_learning_rate = 3e-5",
        "global_batch_size = 96  # 4 on each of 3 GPUs, 8 accumulated",
        "runtime.gpus = 3  # fewer give the same result",
        "epochs = 2",
        "learning_rate = 0.0001",
        "weight_decay = 0.0",
        "warmup_ratio = 0.05",
        "lr_scheduler = \"cosine\"",
        "group_by_modality_length = true",
        "runtime.log_steps = 5",
        "runtime.gradient_checkpointing = true",
        "rank = 64",
        "alpha = 32",
        "dropout = 0.05  # the program's default",
        "neftune_noise_alpha = 5",
        "#   --mm_patch_merge_type flat (line 18)",
        "#   --mm_vision_tower_lr 2e-6: `vision_learning_rate`, where `vision_layers` says how many blocks train",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(
        text.contains("#   --deepspeed ./zero3.json: ") && text.contains("--fp16: there is no fp16 here"),
        "{text}"
    );
    assert!(output.stderr.contains("2 flags have no counterpart"), "{}", output.stderr);

    // Its keys and stages are read; only what it names is not there.
    let planned = space.run(&["plan", "p.toml"]);
    assert!(
        !planned.stderr.contains("unknown key") && planned.stderr.contains("my data/mix.json"),
        "{}",
        planned.stderr
    );
    space
        .write("my data/mix.json", "[]")
        .write("my data/pictures/a.png", "")
        .write("my_llm/x", "")
        .write("my_siglip/x", "")
        .write("out/mm_projector.bin", "");
    let planned = space.succeed(&["plan", "p.toml"]).stdout;
    assert!(planned.contains("finetune") && planned.contains("joined"), "{planned}");

    let again = space.run(&["import", "llava", "lora.sh", "-o", "p.toml"]);
    assert!(again.code == Some(1) && again.stderr.contains("it exists"), "{}", again.stderr);
    assert_eq!(space.read("p.toml"), text);
}

#[test]
fn what_a_script_leaves_open_is_said() {
    let space = Space::new();
    let script = "lm=$1\npython my_train.py --model_name_or_path $lm --data_path d.json --tune_mm_mlp_adapter True \
                  --vision_tower facebook/webssl-dino1b --lr_scheduler_type polynomial --version zh --seed x \\\n\
                  --neftune_noise_alpha 5\n";
    space.write("stage-1.sh", script);
    let output = space.succeed(&["import", "llava", "stage-1.sh"]);
    for remark in [
        "--var",
        "must be a SigLIP, a CLIP or a DINOv2",
        "how many GPUs",
        "polynomial",
        "--version zh",
        "--seed x is no such number",
        "1 flag has",
    ] {
        assert!(output.stderr.contains(remark), "{remark} is not in\n{}", output.stderr);
    }
    for line in
        ["kind = \"pretrain\"", "epochs = 3  # the program's default", "source = \"$1\"  # relative to this file"]
    {
        assert!(output.stdout.lines().any(|found| found == line), "{line} is not in\n{}", output.stdout);
    }
    let args = ["import", "llava", "stage-1.sh", "--var", "1=microsoft/phi-2", "--devices", "2", "--quiet"];
    let output = space.succeed(&args);
    assert!(
        output.stdout.contains("source = \"hf://microsoft/phi-2\"") && output.stderr.is_empty(),
        "{}",
        output.stdout
    );
    assert!(
        output.stdout.contains("global_batch_size = 16  # 8 on each of 2 GPUs, 1 accumulated"),
        "{}",
        output.stdout
    );

    space.write("eval.sh", "python eval.py --x 1\n");
    let refused = space.run(&["import", "llava", "eval.sh"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("starts no training program"), "{}", refused.stderr);
}
