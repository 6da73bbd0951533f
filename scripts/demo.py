"""A page to try a model: `python -m scripts.demo MODEL [--flag value ...]`, then open the address it prints.

Drop an image or choose an example; see source, answer and spread; turn the input, and see by how much the answer does
not turn with it. Needs Gradio: `pip install -e '.[demo]'`. Nobody but this machine reaches the page unless --host says
so; nothing leaves it, and what was uploaded is deleted at the end.
"""

import html
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddbm.bridges.samplers import SAMPLERS
from ddbm.config import MOVED
from ddbm.files import stores
from ddbm.model import SYMMETRIZE, load
from ddbm.ranks.distributed import out_of_memory, pick_device
from ddbm.settings import Settings, from_flags, setting
from ddbm.symmetry.groups import IDENTITY, Element, multiply
from ddbm.translation.answers import ANSWERS

from .common import find_checkpoint, header_of, run
from .studio import Choice, Input, Stopped, Studio, framed, picture, said, source_of, turned_input

UPLOAD = "256mb"  # the largest file
STYLE = """
.figures {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(180px, 47%), 1fr)); gap: 14px}
.figures figure {margin: 0; min-width: 0}
.figures img {width: 100%; height: auto; display: block; border-radius: 4px; background: #8884}
.figures img.small {image-rendering: pixelated}
.figures figcaption {font-size: 13px; padding-top: 4px; overflow-wrap: anywhere}
.figures figcaption b {display: block}
.said {margin: 0 0 10px; font-size: 15px} .said strong {font-variant-numeric: tabular-nums}
.about h1 {font-size: 22px; margin: 4px 0 2px; overflow-wrap: anywhere} .about p {margin: 0; opacity: .75}
#examples .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important; min-height: 0}
#examples, #examples .grid-wrap {height: auto !important; min-height: 0 !important; max-height: none !important}
#examples .thumbnail-item {aspect-ratio: 1} #examples img {image-rendering: pixelated}
.hint {margin: 0; font-size: 14px}
.rest {margin: 26px 0 10px; font-weight: 600}
"""


@dataclass(frozen=True)
class DemoConfig(Settings):
    """The page"""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: every machine that reaches this one may use it")
    port: int = setting(7860, "port to listen on; 0: the first free one from 7860 on", below=65536)
    examples: str = setting("", "folder of images to choose from; default: held-out sources of the model's own data")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = setting("fp32", "arithmetic of the network", choices=("fp32", "bf16", "fp16"))
    weights: str = setting("ema", "which weights: ema, another average of the checkpoint (ema_RATE), or model")
    codec: str = setting("", MOVED)


def one_line(error: Exception) -> str:
    """As HTML."""
    return html.escape(" ".join(str(error).split()))


def page(studio: Studio, examples: Sequence[Input], title: str) -> Any:
    """The page, as Gradio's Blocks."""
    import gradio as gr

    classes = studio.header.images.num_classes
    names = list(studio.header.classes) or [str(n) for n in range(classes)]

    def guarded(work: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What `work` returns; a mistake is one line in the page."""
        try:
            return work()
        except Stopped:
            gr.Info("Stopped.")
            return (gr.skip(),) * 3
        except (ValueError, OSError, RuntimeError) as error:
            if not isinstance(error, (ValueError, OSError)) and not out_of_memory(error):
                raise
            raise gr.Error(one_line(error), print_exception=False) from None

    def choice_of(controls: Sequence[Any]) -> Choice:
        answer, draws, sampler, nfe, seed, symmetrize, group, label = controls
        return Choice(answer, int(draws), sampler, int(nfe), int(seed or 0), symmetrize, group, label)

    def files_shown(paths: list[str]) -> Any:
        return gr.File(paths or None, visible=bool(paths))

    def taken(given: Input) -> tuple[Any, ...]:
        """An input is there: it is shown, and all answers to another are gone."""
        label = gr.skip() if given.label is None else given.label
        text = said("Ready to translate.", given.note) + framed([source_of(given)])
        return given, None, text, files_shown([]), label

    def upload(path: str) -> tuple[Any, ...]:
        try:
            return None, *taken(studio.read(Path(path), Path(path).name))
        except (ValueError, OSError) as error:  # an Error would leave the file where the next is dropped
            gr.Warning(one_line(error))
            return None, *[gr.skip()] * len(fresh)

    def choose(event: gr.SelectData) -> tuple[Any, ...]:
        return taken(examples[event.index])

    def translate(given: Input | None, *controls: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        def work() -> tuple[Any, ...]:
            if given is None:
                raise ValueError("drop an image, or choose an example, first")
            result = studio.translate(given, choice_of(controls), lambda done: progress(done, desc="translating"))
            return (result, IDENTITY), studio.page_of(result), files_shown(studio.files_of(result))

        return guarded(work)

    def turning(step: Element) -> Callable[..., Any]:
        def turn(given: Input | None, state: Any, *controls: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            def work() -> tuple[Any, ...]:
                if given is None:
                    raise ValueError("drop an image, or choose an example, first")
                choice = choice_of(controls)
                base, g = state if state and state[0].given is given else (None, IDENTITY)
                g = multiply(step, g)
                if base is None or base.choice != choice:
                    base = studio.translate(given, choice, lambda done: progress(done, desc="translating as it is"))
                turned = studio.translate(
                    turned_input(given, g), choice, lambda done: progress(done, desc="translating, turned")
                )
                return (base, g), studio.page_of_turned(turned, base, g), files_shown(studio.files_of(turned))

            return guarded(work)

        return turn

    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<div class=about><h1>{html.escape(title)}</h1><p>{html.escape(studio.about())}</p></div>")
        given, state = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                file = gr.File(label="Drop an image here", height=150, elem_id="drop")
                if examples:
                    thumbs = [picture(each.image) for each in examples]
                    gr.HTML("<p class=hint>or choose an example:</p>")
                    gallery = gr.Gallery(
                        thumbs, show_label=False, label="Examples", format="png", columns=4, allow_preview=False,
                        object_fit="contain", interactive=False, buttons=[], elem_id="examples",
                    )  # fmt: skip
                with gr.Row():
                    go = gr.Button("Translate", variant="primary", elem_id="translate", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                answer = gr.Radio(list(ANSWERS), value="both", label="Answer", info="one draw, the best guess, or both")
                with gr.Row():
                    samplers = [name for name in SAMPLERS if name != "ode"]
                    sampler = gr.Dropdown(samplers, value="dbim", label="Sampler", min_width=140)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
                nfe = gr.Slider(1, 200, 20, step=1, label="Evaluations of a draw")
                draws = gr.Slider(
                    0, 32, 4, step=1, label="Draws of mean and spread", info="0: the mean by one evaluation, no spread"
                )
                with gr.Row():
                    symmetrize = gr.Dropdown(list(SYMMETRIZE), value="none", label="Symmetrize", min_width=140)
                    group = gr.Dropdown(
                        studio.groups, value=studio.groups[0], label="Group", interactive=not studio.symmetric,
                        min_width=140,
                    )  # fmt: skip
                label = gr.Dropdown(
                    [(name, n) for n, name in enumerate(names)], value=0 if classes else None, label="Class",
                    visible=bool(classes),
                )  # fmt: skip
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    buttons = {g: gr.Button(name, size="md", min_width=120) for name, g in studio.turns.items()}
                shown = gr.HTML(said("Drop an image, or choose an example; then translate."), elem_id="shown")
                files = gr.File(
                    label="Answers, all pixels", interactive=False, file_count="multiple", visible=False,
                    elem_id="files",
                )  # fmt: skip
        controls = [answer, draws, sampler, nfe, seed, symmetrize, group, label]
        quiet: dict[str, Any] = {"api_visibility": "private"}
        work: dict[str, Any] = quiet | {"concurrency_id": "network", "concurrency_limit": 1, "show_progress_on": shown}
        fresh = [given, state, shown, files, label]
        file.upload(upload, file, [file, *fresh], **quiet)
        if examples:
            gallery.select(choose, None, fresh, **quiet)
        go.click(translate, [given, *controls], [state, shown, files], **work)
        for g, button in buttons.items():
            button.click(turning(g), [given, state, *controls], [state, shown, files], **work)
        stop.click(studio.stopping.set, None, None, queue=False, **quiet)
    return blocks


def main(argv: Sequence[str]) -> int:
    settings, extra = from_flags(DemoConfig, argv, {"model": "checkpoint, or directory of a run"})
    if not find_spec("gradio"):
        raise ValueError("the page needs Gradio, which is not installed: pip install -e '.[demo]'")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is below ends in order
    with TemporaryDirectory(prefix="ddbm_demo_") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        import gradio as gr  # which reads them

        path, device = find_checkpoint(extra.model), pick_device(settings.device)
        model = load(stores.address(path), settings.weights, device, settings.codec)
        model.precision = settings.precision
        studio, title = Studio(model, header_of(path)), path.parents[path.parent.name == "checkpoints"].name
        blocks = page(studio, studio.examples(settings.examples), title)
        blocks.queue(api_open=False)
        with closing(blocks):
            try:
                _, address, _ = blocks.launch(
                    server_name=settings.host, server_port=settings.port or None, share=False, quiet=True,
                    prevent_thread_lock=True, inbrowser=False, footer_links=[], ssr_mode=False, mcp_server=False,
                    pwa=False, max_file_size=UPLOAD, css=STYLE,
                    theme=gr.themes.Default(primary_hue="teal", neutral_hue="stone"),
                )  # fmt: skip
            except OSError:
                raise ValueError(
                    f"cannot listen on port {settings.port} of {settings.host}: in use, or no address of this machine; "
                    "--port 0 takes the first free one"
                ) from None
            print(f"open {address} (Ctrl-C ends)", flush=True)
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    run(main)
