"""A page for the browser that translates pictures, made with Gradio (extra `app`)."""

import html
import os
from collections.abc import Callable, Sequence
from typing import Any

from stargan_dist.errors import UserError
from stargan_dist.inference.examples import Example
from stargan_dist.inference.page_actions import (
    REFERENCES,
    SEEDS,
    Actions,
    is_complete,
    save_png,
)
from stargan_dist.inference.pictures import FITS
from stargan_dist.inference.side_by_side import MAX_OUTPUTS, SideBySide

TITLE = "Translate pictures"
MAX_SEED = 1000
MAX_STRENGTH = 1.2
MAX_RADIO_TARGETS = 12  # more of them are a list
OUTPUT_COLUMNS = 4
COARSE_PIXELS = 128  # smaller images are shown with visible pixels
KEEP_SECONDS = 3600  # of uploads and outputs
QUEUE_LENGTH = 16
# Of events that translate nothing.
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def import_gradio() -> Any:
    """Import Gradio, with its telemetry off.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs a package: pip install 'stargan_dist[app]'") from error
    return gradio


def build(actions: Actions, examples: Sequence[Example] = ()) -> Any:
    """Return the page as `gradio.Blocks`.

    Args:
        actions: the functions of its controls, and the models, a column each.
        examples: pictures to choose from.

    Raises:
        UserError: Gradio is not installed.
    """
    gr = import_gradio()
    clean_up = (KEEP_SECONDS, KEEP_SECONDS)
    files = [(save_png(example.image), example.domain) for example in examples]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=clean_up) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(min_width=320):
                controls = _source(gr, files)
            with gr.Column(min_width=320):
                controls |= _target(gr, actions.models)
                controls |= _style(gr, actions.models, controls["target"], files)
                button = gr.Button("Translate", variant="primary", elem_id="translate")
        controls |= _models(gr, [*actions.models.translators])
        with gr.Row():
            columns = [_column(gr, actions, name) for name in actions.models.translators]
        download = gr.DownloadButton("Download all as one PNG", interactive=False, size="sm")
        outputs = [*(part for _, *parts in columns for part in parts), download]
        _show_chosen(gr, controls["models"], [column for column, *_ in columns])
        _connect(gr, actions, controls, button, outputs)
    return blocks.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1, api_open=False)


# Controls, by the name of their argument of `Actions.translate`.

Controls = dict[str, Any]


def _source(gr: Any, examples: Sequence[tuple[str, str]]) -> Controls:
    source = gr.Image(
        label="Picture", type="filepath", sources=["upload", "clipboard"], height=240,
        buttons=["fullscreen"], elem_id="source",
    )  # fmt: skip
    # The component's own method opens the file with any decoder of PIL.
    source.preprocess = lambda data: data.path if data else None
    _refuse_addresses(gr, source)
    _add_examples(gr, [[path] for path, _ in examples], [source])
    fit = gr.Radio([*FITS], value="crop", label="A picture that is not square", elem_id="fit")
    return {"source": source, "fit": fit}


def _add_examples(gr: Any, rows: list[list[Any]], inputs: list[Any]) -> None:
    """Show values of the first input. One that is clicked sets all inputs."""
    if not rows:
        return
    # Not gradio.Examples, which replaces the inputs by new components, without our methods.
    examples = gr.Dataset(
        components=inputs[:1], samples=[row[:1] for row in rows], type="index", label="Examples",
        samples_per_page=len(rows), elem_id=f"examples_{inputs[0].elem_id}",
    )  # fmt: skip
    values = rows if len(inputs) > 1 else [row[0] for row in rows]
    examples.click(lambda index: values[index], examples, inputs, **QUICK)


def _refuse_addresses(gr: Any, component: Any) -> None:
    """Let a component take uploads alone: Gradio downloads files that a request names by URL."""
    move = component.async_move_resource_to_block_cache

    async def move_file(path: str) -> Any:
        if "://" in str(path):
            raise gr.Error("upload the picture instead of an address", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_file


def _target(gr: Any, models: SideBySide) -> Controls:
    def checkboxes(target: str) -> dict[str, Any]:
        names = models.targets[target]
        return {"choices": names, "value": [], "visible": bool(names)}

    names = [*models.targets]
    choose = gr.Radio if len(names) <= MAX_RADIO_TARGETS else gr.Dropdown
    target = choose(names, value=names[0], label="Translate to", elem_id="target")
    attributes = gr.CheckboxGroup(
        label="Attributes of the output", elem_id="attributes", **checkboxes(names[0])
    )
    target.change(lambda name: gr.update(**checkboxes(name)), target, attributes, **QUICK)
    return {"target": target, "attributes": attributes}


def _style(
    gr: Any, models: SideBySide, target: Any, examples: Sequence[tuple[str, str]]
) -> Controls:
    guide = gr.Radio(
        [SEEDS, REFERENCES], value=SEEDS, label="Guided by", elem_id="guide",
        visible=models.diverse and models.guided_by_references,
    )  # fmt: skip
    with gr.Column(visible=models.diverse) as by_seeds:
        seeds = _seeds(gr, models)
    with gr.Column(visible=False) as by_references:
        references = _references(gr, target, [row for row in examples if row[1] in models.targets])
    guide.change(
        lambda name: [gr.update(visible=name == SEEDS), gr.update(visible=name == REFERENCES)],
        guide, [by_seeds, by_references], **QUICK,
    )  # fmt: skip
    strength = _slider(
        gr, 0, MAX_STRENGTH, 1, step=0.05, label="Strength of the style", elem_id="strength",
        info="1: as it is; 0: the mean style of the domain", visible=models.diverse,
    )  # fmt: skip
    return {"guide": guide, **seeds, "references": references, "strength": strength}


def _seeds(gr: Any, models: SideBySide) -> Controls:
    with gr.Row():
        seed = _slider(gr, 0, MAX_SEED, 0, step=1, label="Seed", elem_id="seed")
        count = _slider(
            gr, 1, MAX_OUTPUTS, OUTPUT_COLUMNS if models.diverse else 1, step=1,
            label="Number of styles", elem_id="count",
        )  # fmt: skip
    more = gr.Button("Other styles", size="sm", elem_id="more")
    more.click(lambda first, n: (first + n) % MAX_SEED, [seed, count], seed, **QUICK)
    return {"seed": seed, "count": count}


def _slider(gr: Any, minimum: float, maximum: float, value: float, **options: Any) -> Any:
    """Make a slider that limits numbers typed beside it; its own method reports a fault.

    An emptied field counts as the initial value.
    """

    def limited(number: Any) -> float:
        return min(max(minimum, number), maximum) if isinstance(number, int | float) else value

    slider = gr.Slider(minimum, maximum, value, **options)
    slider.preprocess = limited
    return slider


def _references(gr: Any, target: Any, examples: Sequence[tuple[str, str]]) -> Any:
    gr.Markdown("References: pictures of the domain that is translated to")
    references = gr.Gallery(
        show_label=False, columns=MAX_OUTPUTS // 2, height=160, interactive=True,
        object_fit="contain", fit_columns=False, buttons=["fullscreen"], elem_id="references",
    )  # fmt: skip
    _refuse_addresses(gr, references)
    _add_examples(gr, [[[path], domain] for path, domain in examples], [references, target])
    return references


def _models(gr: Any, names: list[str]) -> Controls:
    models = gr.CheckboxGroup(
        names, value=names, label="Models", show_label=False, container=False, elem_id="models",
        visible=len(names) > 1,
    )  # fmt: skip
    return {"models": models}


# Outputs.


def _column(gr: Any, actions: Actions, name: str) -> tuple[Any, Any, Any]:
    """Make the column of a model, with a note and its outputs."""
    translators = actions.models.translators
    is_coarse = translators[name].image_size < COARSE_PIXELS
    in_one_row = is_coarse and len(translators) == 1
    with gr.Column(min_width=240) as column:
        note = gr.Markdown(actions.note(name))
        gallery = gr.Gallery(
            show_label=False, format="png", object_fit="contain",
            columns=MAX_OUTPUTS if in_one_row else OUTPUT_COLUMNS, fit_columns=False,
            interactive=False, buttons=["download", "fullscreen"], height="auto",
            elem_classes=["outputs", *["coarse"] * is_coarse],
        )  # fmt: skip
    return column, note, gallery


def _show_chosen(gr: Any, models: Any, columns: list[Any]) -> None:
    """Show the columns of the chosen models."""
    names = models.value
    models.change(
        lambda chosen: [gr.update(visible=name in chosen) for name in names],
        models, columns, **QUICK,
    )  # fmt: skip


def _connect(
    gr: Any, actions: Actions, controls: Controls, button: Any, outputs: list[Any]
) -> None:
    """Translate when a control changes or the button is pressed, one request at a time."""

    def translate(*values: Any) -> list[Any]:
        return _shown(gr, actions.translate, dict(zip(controls, values, strict=True)))

    def follow(*values: Any) -> Any:
        given = dict(zip(controls, values, strict=True))
        if not given["source"]:
            return _shown(gr, actions.clear, {})
        is_ready = is_complete(given["source"], given["guide"], given["references"])
        return translate(*values) if is_ready else gr.skip()

    event: dict[str, Any] = {
        "inputs": [*controls.values()], "outputs": outputs, "concurrency_id": "models",
        "api_visibility": "private",
    }  # fmt: skip
    button.click(translate, **event)
    changes = [control.change for control in controls.values()]
    gr.on(changes, follow, trigger_mode="always_last", show_progress="minimal", **event)


def _shown(gr: Any, action: Callable[..., list[Any]], arguments: dict[str, Any]) -> list[Any]:
    """Return the results of an action for the outputs; the page shows its errors."""
    try:
        *results, path = action(**arguments)
    except UserError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    return [*results, gr.update(value=path, interactive=path is not None)]
