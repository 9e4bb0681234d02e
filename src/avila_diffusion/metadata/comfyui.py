"""ComfyUI's graph: the sampler that began the picture, and from it back along the links to everything it was given.

The graph that ran is the text `prompt`: by number, each node's class and inputs, an input being a value or [node, output].
The text `workflow` is the drawing of the editor; it is read where the other is missing. Nodes on the way that
are not known here change something, and are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..infotext import LoraUsed
from .found import Draft, load_json, number, plain_fields, rows, stem, table, text_of, whole
from .webui import LORA_TAG

SOURCE = "ComfyUI"

_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_EMPTY = ("EmptyLatentImage", "EmptySD3LatentImage", "SDXLEmptyLatentSizePicker+")
_TEXTS = ("CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPTextEncodeSDXLRefiner")
_LOADERS = ("CheckpointLoaderSimple", "CheckpointLoader", "unCLIPCheckpointLoader", "ImageOnlyCheckpointLoader")
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_PASS_ON = ("Reroute", "ReroutePrimitive")
_DECODERS = ("VAEDecode", "VAEDecodeTiled")
_OUTPUTS = ("SaveImage", "PreviewImage", "Image Save", "SaveAnimated")
_MUTED, _BYPASSED = 2, 4
_WIDGETS: dict[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
        "return_with_leftover_noise",
    ),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPTextEncode": ("text",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "VAELoader": ("vae_name",),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}  # fmt: skip
"""What the values of a node in the editor's drawing are called, in their order; "" is a button of the editor alone."""
_MOST_NODES, _MOST_SAMPLERS = 5_000, 50


@dataclass(frozen=True)
class Node:
    """A node of the graph: its number, class and inputs."""

    id: str
    kind: str
    inputs: dict[str, Any]


Graph = dict[str, Node]


def read_comfyui(texts: Mapping[str, str]) -> Draft | None:
    """A picture with a graph of ComfyUI; None for others."""
    told = load_json(texts.get("prompt"))
    if len(table(told)) > _MOST_NODES:
        return Draft(source=SOURCE, lost=[f"the graph has {len(told):,} nodes; at most {_MOST_NODES:,} are read"])
    graph = _graph(told) or _drawn(load_json(texts.get("workflow")))
    if not graph:
        return None
    draft = Draft(source=SOURCE, values={"compat": "comfyui"})
    sampler = _first_sampler(graph, draft)
    if sampler is None:
        draft.lost.append("the graph has no sampler that is known here (KSampler, KSamplerAdvanced, SamplerCustom)")
        return draft
    draft.fields = plain_fields({f"{node.id} {node.kind}": node.inputs for node in _behind(graph, sampler)})
    _read_sampler(graph, sampler, draft)
    _read_latent(graph, sampler, draft)
    prompt = draft.values.get("prompt", "")
    for match in LORA_TAG.finditer(prompt):
        draft.lose("words to ComfyUI, a LoRA here", match[0])
    draft.values["prompt"] = LORA_TAG.sub("", prompt)
    return draft


def _graph(prompt: object) -> Graph:
    found = {}
    for key, value in table(prompt).items():
        kind = table(value).get("class_type")
        if isinstance(kind, str):
            found[key] = Node(key, kind, table(value.get("inputs")))
    return found


def _drawn(workflow: object) -> Graph:
    """The same from the editor's drawing, where the names of values are known."""
    told = table(workflow)
    links = {row[0]: row for row in rows(told.get("links")) if _is_link_row(row)}
    nodes = {}
    for node in map(table, rows(told.get("nodes"))[:_MOST_NODES]):
        if isinstance(node.get("type"), str) and isinstance(node.get("id"), int | str):
            nodes[str(node["id"])] = node
    found = {}
    for key, node in nodes.items():
        if node.get("mode") in (_MUTED, _BYPASSED):
            continue
        kind = node["type"]
        widgets = rows(node.get("widgets_values"))
        inputs: dict[str, Any] = {name: one for name, one in zip(_WIDGETS.get(kind, ()), widgets, strict=False) if name}
        for place in map(table, rows(node.get("inputs"))):
            link, name = place.get("link"), place.get("name")
            origin = _origin(link, links, nodes)
            if isinstance(name, str) and origin is not None:
                inputs[name] = origin
        found[key] = Node(key, kind, inputs)
    return found


def _origin(link: object, links: Mapping[Any, list[Any]], nodes: Mapping[str, dict[str, Any]]) -> list[Any] | None:
    """[node, output] where a link of the drawing begins, past nodes that are bypassed: those hand on what is of its kind."""
    for _ in range(100):
        row = links.get(link) if isinstance(link, int | str) else None
        if row is None:
            return None
        node = nodes.get(str(row[1]), {})
        if node.get("mode") != _BYPASSED:
            return [str(row[1]), row[2]]
        kind = row[5] if len(row) > 5 else None
        places = map(table, rows(node.get("inputs")))
        link = next((place.get("link") for place in places if kind and _kind_of(place) == kind), None)
    return None


def _kind_of(place: Mapping[str, Any]) -> object:
    """MODEL, CLIP …; old drawings name it by the input alone."""
    name = place.get("name")
    return place.get("type") or (name.upper() if isinstance(name, str) else None)


def _is_link_row(row: object) -> bool:
    return isinstance(row, list) and len(row) > 2 and all(isinstance(one, int | str) for one in row[:3])


def _linked(graph: Graph, node: Node, name: str) -> Node | None:
    """The node that feeds an input, past those that only hand on."""
    value = node.inputs.get(name)
    for _ in range(100):
        following = graph.get(str(value[0])) if isinstance(value, list) and value else None
        if following is None or following.kind not in _PASS_ON:
            return following
        value = next((one for one in following.inputs.values() if isinstance(one, list)), None)
    return None


def _value(graph: Graph, node: Node, name: str) -> Any:
    """The value of an input; where a node of a single value feeds it, that."""
    value = node.inputs.get(name)
    if not isinstance(value, list):
        return value
    source = _linked(graph, node, name)
    if source is None:
        return None
    for key in (name, "value", "text", "string", "seed", "noise_seed", "int", "float", "Text", "Value"):
        if key in source.inputs and not isinstance(source.inputs[key], list):
            return source.inputs[key]
    return None


def _told(graph: Graph, node: Node, name: str, draft: Draft) -> Any:
    """The value of an input; said to be lost where a node gives it whose value is not read."""
    value = _value(graph, node, name)
    if value is None and isinstance(node.inputs.get(name), list):
        source = _linked(graph, node, name)
        draft.lost.append(f"node {node.id[:20]}: {name} comes from {source.kind[:60] if source else 'no node'}")
    return value


def _behind(graph: Graph, *ends: Node) -> Iterator[Node]:
    """The nodes, and every one before them that they were made from."""
    seen, waiting = set(), [node.id for node in reversed(ends)]
    while waiting:
        key = waiting.pop()
        if key in seen or key not in graph:
            continue
        seen.add(key)
        yield graph[key]
        waiting += [str(value[0]) for value in graph[key].inputs.values() if isinstance(value, list) and value]


def _first_sampler(graph: Graph, draft: Draft) -> Node | None:
    """The sampler that no other one feeds, of those that lead to a saved picture; the others are said to be lost."""
    outputs = [node for node in graph.values() if node.kind.startswith(_OUTPUTS)]
    reached = {node.id: node for node in _behind(graph, *outputs)} or graph
    samplers = [node for node in reached.values() if node.kind in _SAMPLERS]
    if not samplers:
        samplers = [node for node in graph.values() if node.kind in _SAMPLERS]
    samplers = samplers[:_MOST_SAMPLERS]
    first = min(samplers, key=lambda node: sum(other.kind in _SAMPLERS for other in _behind(graph, node)), default=None)
    for node in samplers:
        if first is not None and node.id != first.id:
            draft.lost.append(f"node {node.id[:20]}: another pass of {node.kind}")
    for node in reached.values():
        if "Upscale" in node.kind or "FaceDetailer" in node.kind:
            draft.lose(f"node {node.id[:20]}", node.kind)
    _read_finish(graph, outputs, draft)
    return first


def _read_finish(graph: Graph, outputs: list[Node], draft: Draft) -> None:
    """What lies between the latent and the saved picture: the VAE, and what was done to the picture after it."""
    seen = {node.id for node in outputs}
    waiting = list(outputs)
    vaes: list[str | None] = []
    while waiting:
        node = waiting.pop()
        for name, value in node.inputs.items():
            before = _linked(graph, node, name) if isinstance(value, list) else None
            if before is None or before.id in seen or before.kind in _SAMPLERS:
                continue
            seen.add(before.id)
            if before.kind in _DECODERS:
                loader = _linked(graph, before, "vae")
                vaes.append(None if loader is None else text_of(_told(graph, loader, "vae_name", draft)))
                if before.kind != "VAEDecode":
                    draft.lose(f"node {before.id[:20]}", before.kind)
            elif "image" in name.lower() or "pixels" in name.lower():
                draft.lose(f"node {before.id[:20]}", before.kind)
                waiting.append(before)
    draft.vae = vaes[-1] if vaes else None
    for other in dict.fromkeys(vaes[:-1]):
        if other != draft.vae:
            draft.lose("another VAE", other or "the checkpoint's own")


def _read_sampler(graph: Graph, sampler: Node, draft: Draft) -> None:
    seed_of, guider, levels = sampler, sampler, sampler
    if sampler.kind == "SamplerCustomAdvanced":
        seed_of, guider = _linked(graph, sampler, "noise") or sampler, _linked(graph, sampler, "guider") or sampler
    if sampler.kind.startswith("SamplerCustom"):
        levels = _linked(graph, sampler, "sigmas") or sampler
        _read_chosen(graph, sampler, draft)
        _read_levels(graph, levels, draft)
    else:
        draft.take("sampler", _told(graph, sampler, "sampler_name", draft))
        draft.take("schedule", _told(graph, sampler, "scheduler", draft))
    draft.take("seed", whole(_told(graph, seed_of, "noise_seed" if "noise_seed" in seed_of.inputs else "seed", draft)))
    if seed_of.kind == "DisableNoise":
        draft.lose("add_noise", "disable")
    draft.take("steps", whole(_told(graph, levels, "steps", draft)))
    draft.take("guidance_scale", 1.0 if guider.kind == "BasicGuider" else number(_told(graph, guider, "cfg", draft)))
    _read_part(graph, sampler, levels, draft)
    positive = "conditioning" if guider.kind == "BasicGuider" else "positive"
    prompt, clip = _read_text(graph, guider, positive, draft)
    draft.take("prompt", prompt)
    if guider.kind != "BasicGuider":
        negative, other = _read_text(graph, guider, "negative", draft)
        draft.take("negative_prompt", negative)
        if clip is not None and other is not None and _way(graph, clip) != _way(graph, other):
            draft.lost.append("the negative prompt goes through other LoRAs or layers of the text encoder")
    _read_model(graph, guider, clip, draft)


def _read_part(graph: Graph, sampler: Node, levels: Node, draft: Draft) -> None:
    """Whether only part of the steps ran, or without noise of its own."""
    steps = number(draft.values.get("steps"), 0.0) or 0.0
    denoise = _told(graph, levels, "denoise", draft)
    if number(denoise, 1.0) != 1.0:
        draft.lose("denoise", denoise)
    start, end = (_told(graph, sampler, name, draft) for name in ("start_at_step", "end_at_step"))
    if number(start, 0.0):
        draft.lose("start_at_step", start)
    if (number(end, steps) or 0.0) < steps:
        draft.lose("end_at_step", end)
    if _told(graph, sampler, "add_noise", draft) in ("disable", False):
        draft.lose("add_noise", "disable")


def _read_chosen(graph: Graph, sampler: Node, draft: Draft) -> None:
    """The node that picks the sampler for the custom ones."""
    chosen = _linked(graph, sampler, "sampler")
    if chosen is not None and chosen.kind == "KSamplerSelect":
        draft.take("sampler", _told(graph, chosen, "sampler_name", draft))
    elif chosen is not None and chosen.kind == "SamplerEulerAncestral":
        draft.values["sampler"] = "euler_ancestral"
        draft.take("eta", number(_told(graph, chosen, "eta", draft)))
        draft.take("s_noise", number(_told(graph, chosen, "s_noise", draft)))
    else:
        draft.lose("sampler", chosen.kind if chosen is not None else "none that is known")


def _way(graph: Graph, node: Node) -> list[str]:
    """The nodes through which a text encoder came to a node."""
    way: list[str] = []
    following = _linked(graph, node, "clip")
    while following is not None and len(way) < 200:
        way.append(following.id)
        following = _linked(graph, following, "clip")
    return way


def _read_levels(graph: Graph, node: Node, draft: Draft) -> None:
    """The nodes that make sigmas for the custom samplers."""
    names = {
        "KarrasScheduler": "Karras",
        "ExponentialScheduler": "Exponential",
        "PolyexponentialScheduler": "Polyexponential",
    }
    if node.kind == "BasicScheduler":
        draft.take("schedule", _told(graph, node, "scheduler", draft))
    elif node.kind in names:
        draft.values["schedule"] = names[node.kind]
        for name in ("sigma_max", "sigma_min", "rho"):
            draft.take(name, number(_told(graph, node, name, draft)))
    else:
        draft.lose("sigmas", node.kind)


def _read_text(graph: Graph, node: Node, name: str, draft: Draft) -> tuple[str | None, Node | None]:
    """The text that an input was encoded from, and the node that encoded it."""
    found = _linked(graph, node, name)
    for _ in range(200):
        if found is None:
            return None, None
        if found.kind in _TEXTS:
            break
        draft.lost.append(f"node {found.id[:20]}: {found.kind[:60]} on the way of the {name} prompt")
        if found.kind == "ConditioningZeroOut":  # nothing of the text is left
            return "", None
        ways = (name, "conditioning", "conditioning_1", "conditioning_to", "positive")
        found = next((one for way in ways if (one := _linked(graph, found, way)) is not None), None)
    assert found is not None
    texts = [
        text for key in ("text", "text_g", "text_l") if (text := text_of(_told(graph, found, key, draft))) is not None
    ]
    if len(set(texts)) > 1:
        draft.lost.append(f"node {found.id[:20]}: another text for each of the two text encoders")
    if found.kind != "CLIPTextEncode":
        draft.lost.append(f"node {found.id[:20]}: {found.kind} with sizes of its own")
    return (texts[0] if texts else ""), found


def _read_model(graph: Graph, guider: Node, clip: Node | None, draft: Draft) -> None:
    """The checkpoint, and the LoRAs on the ways of model and text encoder; in the order in which they are laid on."""
    weights: dict[str, tuple[str, dict[str, float]]] = {}
    for start, name in ((guider, "model"), (clip, "clip")):
        node = None if start is None else _linked(graph, start, name)
        for _ in range(200):
            if node is None:
                break
            if node.kind in _LOADERS:
                draft.model = stem(_told(graph, node, "ckpt_name", draft))
                break
            if node.kind in _LORAS:
                strength = number(_told(graph, node, f"strength_{name}", draft))
                told = weights.setdefault(node.id, (stem(_told(graph, node, "lora_name", draft)) or "", {}))
                told[1][name] = strength if strength is not None else 0.0
            elif node.kind == "CLIPSetLastLayer":
                layer = whole(_told(graph, node, "stop_at_clip_layer", draft))
                draft.take("clip_skip", -layer if isinstance(layer, int) else layer)
            else:
                draft.lost.append(f"node {node.id[:20]}: {node.kind[:60]} on the way of the {name}")
                if node.kind in ("UNETLoader", "CLIPLoader", "DualCLIPLoader"):
                    break
            node = _linked(graph, node, name)
    for lora, strengths in reversed(weights.values()):
        text, unet = strengths.get("clip", 0.0), strengths.get("model", 0.0)
        if lora and (text or unet):
            draft.loras.append(LoraUsed(name=lora, text_weight=text, unet_weight=unet))


def _read_latent(graph: Graph, sampler: Node, draft: Draft) -> None:
    latent = _linked(graph, sampler, "latent_image")
    if latent is None or latent.kind not in _EMPTY:
        draft.lost.append(
            f"the picture began with {latent.kind[:60] if latent else 'nothing that is known'}, not an empty latent"
        )
        return
    for name in ("width", "height"):
        draft.take(name, whole(_told(graph, latent, name, draft)))
    batch = whole(_told(graph, latent, "batch_size", draft))
    if isinstance(batch, int) and batch > 1:
        draft.values |= {"noise_batch": batch, "noise_index": 0}
        draft.lost.append(f"which picture of the batch of {batch} it is; taken is the first (--noise-index 0)")
