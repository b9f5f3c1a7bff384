"""The help texts: commands in the groups and the order of the pipeline, each with an example."""

import click

WIDTH = 100
HELP = ["-h", "--help"]
GROUPS = {
    "Models of your own": ("quantize", "generate"),
    "From a checkpoint to images": (
        "download",
        "checkpoint",
        "calibrate",
        "reconstruct",
        "deploy",
        "export",
        "verify",
        "layer-errors",
        "sample",
        "grid",
    ),
    "From images and engines to the report": ("reference", "metrics", "latency", "tables", "ablation", "report"),
    "Look at results": ("info", "compare", "recipe", "systems"),
    "Documentation": ("help", "params", "pictures"),
    "Train the embedded models": ("train",),
}
EXAMPLES = {
    "quantize": "edadm quantize my-pipeline --weights 4 --activations 8 --out my-pipeline-w4a8",
    "generate": 'edadm generate my-pipeline-w4a8 "a red boat" --seed 7 --out boat.png',
    "download": "edadm download cifar10-ddim",
    "checkpoint": "edadm checkpoint fashion-ddim --out results/fashion-ddim/checkpoint",
    "calibrate": "edadm calibrate fashion-ddim tdac --checkpoint results/fashion-ddim/checkpoint"
    " --out results/fashion-ddim/calibration-tdac.safetensors",
    "reconstruct": "edadm reconstruct fashion-ddim w4a8 --checkpoint results/fashion-ddim/checkpoint"
    " --calibration results/fashion-ddim/calibration-tdac.safetensors --scratch scratch/w4a8"
    " --out results/fashion-ddim/w4a8/quantized",
    "deploy": "edadm deploy --quantized results/fashion-ddim/w4a8/quantized --out results/fashion-ddim/w4a8/engine-cpu",
    "export": "edadm export --quantized results/fashion-ddim/w4a8/quantized --out fashion-ddim-w4a8-onnx",
    "verify": "edadm verify --quantized results/fashion-ddim/w4a8/quantized"
    " --engine results/fashion-ddim/w4a8/engine-cpu"
    " --calibration results/fashion-ddim/calibration-tdac.safetensors"
    " --out results/fashion-ddim/w4a8/verification.json",
    "layer-errors": "edadm layer-errors --checkpoint results/fashion-ddim/checkpoint"
    " --quantized results/fashion-ddim/w4a8/quantized"
    " --calibration results/fashion-ddim/calibration-tdac.safetensors"
    " --out results/fashion-ddim/w4a8/layer-errors.csv",
    "sample": "edadm sample fashion-ddim --engine results/fashion-ddim/w4a8/engine-cpu"
    " --checkpoint results/fashion-ddim/checkpoint --scratch scratch/samples"
    " --out results/fashion-ddim/w4a8/samples",
    "grid": "edadm grid --samples results/fashion-ddim/w4a8/samples --rows 4 --out grid.png",
    "reference": "edadm reference fashion-ddim --out results/fashion-ddim/reference.npz",
    "metrics": "edadm metrics fashion-ddim w4a8 --samples results/fashion-ddim/w4a8/samples"
    " --fp32 results/fashion-ddim/fp32/samples --reference results/fashion-ddim/reference.npz"
    " --out results/fashion-ddim/w4a8/metrics.json",
    "latency": "edadm latency fashion-ddim --checkpoint results/fashion-ddim/checkpoint"
    " --out results/fashion-ddim/latency-cpu.json",
    "tables": "edadm tables --out results/tables",
    "ablation": "edadm ablation --out results/tables/ablation.csv",
    "report": "edadm report --out results/report.html",
    "info": "edadm info results/fashion-ddim/w4a8/quantized",
    "compare": "edadm compare results/fashion-ddim/w8a8 results/fashion-ddim/w4a8",
    "recipe": "edadm recipe diff w4a8 w4a8-rtn",
    "recipe diff": "edadm recipe diff w4a8 w4a8-rtn",
    "systems": "edadm systems",
    "help": "edadm help > docs/help.txt",
    "params": "edadm params > docs/params.md",
    "pictures": "edadm pictures fashion-ddim w4a8 --out docs/pictures",
    "train": "edadm train fashion-ddim --out training/fashion-ddim",
}


class Pipeline(click.Group):
    """Lists the commands by groups, in the order of the pipeline."""

    def list_commands(self, _: click.Context) -> list[str]:
        """The commands in the order of ``GROUPS``; what is in none of them comes last."""
        known = [name for names in GROUPS.values() for name in names if name in self.commands]
        return known + [name for name in self.commands if name not in known]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each group."""
        grouped = {name: title for title, names in GROUPS.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, "Other commands")}
        for name in self.list_commands(context):
            text = self.commands[name].get_short_help_str(limit=200)
            rows[grouped.get(name, "Other commands")].append((name, text))
        for title, listed in rows.items():
            if listed:
                with formatter.section(title):
                    formatter.write_dl(listed)


def add_example(command: click.Command, name: str | None = None) -> None:
    """Put the command's example at the end of its help."""
    example = EXAMPLES.get(name or command.name)
    if example:
        command.epilog = f"Example:\n\n\b\n  {example}"
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_example(inner, f"{command.name} {inner.name}")


@click.command(name="help")
@click.pass_context
def help_(context: click.Context) -> None:
    """Print the help of every command, one after the other: docs/help.txt."""
    click.echo(text(context.find_root().command), nl=False)


@click.command(name="params")
def params_() -> None:
    """Print what each key of params.yaml means, what it allows and its default: docs/params.md."""
    from edadm.params import document

    click.echo(document.text(), nl=False)


def text(root: click.Command) -> str:
    """The help of ``root`` and of all its commands, 100 columns wide."""
    return "\n".join(f"$ {path} --help\n{page}\n" for path, page in _pages(root, "edadm", None))


def _pages(command: click.Command, path: str, parent: click.Context | None) -> list[tuple[str, str]]:
    name = path.rpartition(" ")[2]
    settings = {"terminal_width": WIDTH, "max_content_width": WIDTH, "help_option_names": HELP}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    pages = [(path, command.get_help(context))]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            pages += _pages(command.commands[inner], f"{path} {inner}", context)
    return pages
