"""The root command. Verbs are imported only when called, so that `hpcmass --help` answers at once."""

from __future__ import annotations

import os
from importlib import import_module

import click

from hpcmass import __version__
from hpcmass.cli.console import visible
from hpcmass.errors import HpcmassError

VERBS: dict[str, tuple[str, str]] = {
    "init": ("hpcmass.cli.init", "Make a project folder, with a recipe and a job file to start from."),
    "job": ("hpcmass.cli.job", "Check a job file and show it as resolved."),
    "shard": ("hpcmass.cli.shard", "Cut a data set into HDF5 shards."),
    "data": ("hpcmass.cli.data", "Show or verify a dataset."),
    "train": ("hpcmass.cli.train", "Train the model of a job file, alone or on several ranks."),
    "run": ("hpcmass.cli.run", "Start a training script of your own on several ranks."),
    "plan": ("hpcmass.cli.plan", "Show on which target a job would finish first, or cost least."),
    "submit": ("hpcmass.cli.submit", "Submit a job file to Slurm."),
    "rerun": ("hpcmass.cli.rerun", "Submit a run again, exactly as it was submitted last."),
    "sweep": ("hpcmass.cli.sweep", "Search hyperparameters; show or resume a study."),
    "workflow": ("hpcmass.cli.workflow", "Go on with a sweep or a workflow by its folder."),
    "evaluate": ("hpcmass.cli.evaluate", "Evaluate a model on a dataset."),
    "predict": ("hpcmass.cli.predict", "Predict for the samples of a file."),
    "export": ("hpcmass.cli.export", "Export a model as ONNX, torch.export or int8."),
    "serve": ("hpcmass.cli.serve", "Answer requests to a model over HTTP: one replica."),
    "drift": ("hpcmass.cli.drift", "Hold what a deployment is asked against the training data."),
    "labels": ("hpcmass.cli.labels", "Post labels that came later; show live accuracy."),
    "retrain": ("hpcmass.cli.retrain", "Train a deployment's model on with new data, through the gate."),
    "deploy": ("hpcmass.cli.deploy", "Put a model behind an address, with replicas that follow the load."),
    "deployments": ("hpcmass.cli.deployments", "List the deployments."),
    "endpoint": ("hpcmass.cli.endpoint", "Print where a deployment answers."),
    "rollback": ("hpcmass.cli.rollback", "Bring back the version that a deployment served before."),
    "undeploy": ("hpcmass.cli.undeploy", "End a deployment."),
    "gateway": ("hpcmass.cli.gateway", "Be the gateway of a deployment."),
    "token": ("hpcmass.cli.token", "Make a token that lets a client use a replica."),
    "catalogue": ("hpcmass.cli.catalogue", "Register, list, alias, verify and load models."),
    "hop": ("hpcmass.cli.hop", "Be one hop of a run, inside its batch script."),
    "site": ("hpcmass.cli.site", "Draft, check and probe a site file: the targets of a supercomputer."),
    "env": ("hpcmass.cli.env", "Build, check and pack a Python environment for the compute nodes."),
    "status": ("hpcmass.cli.status", "Show the state of runs, in Slurm's queue and out of it."),
    "watch": ("hpcmass.cli.watch", "Watch runs in a live view."),
    "dashboard": ("hpcmass.cli.dashboard", "Show runs, sweeps, models and deployments on a web page, live."),
    "logs": ("hpcmass.cli.logs", "Show or follow the output of a run's ranks."),
    "wait": ("hpcmass.cli.wait", "Wait until runs are over."),
    "cancel": ("hpcmass.cli.cancel", "Cancel runs, waiting or running."),
    "why": ("hpcmass.cli.why", "Say why a run is in its state, and what to do."),
    "slurm": (
        "hpcmass.cli.slurm",
        "Start a real Slurm of six small nodes on this machine, to learn and test with.",
    ),
}

# What scripts call and people do not.
HIDDEN = {"hop", "gateway"}


class LazyGroup(click.Group):
    """A group whose commands are known by name and one line of help until one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(VERBS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, naming the nearest verb where there is none of that name."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            like = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean '{like[0]}'?" if like else ""
            ctx.fail(f"There is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items() if name not in HIDDEN])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpcmass")
def root() -> None:
    """Train, search, catalogue and use masses of models, with no server and no root.

    A project folder (hpcmass init) holds data, runs, studies and the catalogue. HPCMASS_DEBUG=1 shows
    tracebacks.
    """


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; a known error becomes a plain message."""
    try:
        result = root.main(args=arguments, prog_name="hpcmass", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        if "HPCMASS_KEEPER" not in os.environ:  # of ranks the command that started them says it
            click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except HpcmassError as error:
        return _tell(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        # A folder that may not be read, a disk that fails: where no code of ours gave it better words.
        return _tell(HpcmassError(error.strerror or str(error), where=error.filename))
    return result if isinstance(result, int) else 0


def _tell(error: HpcmassError) -> int:
    if os.environ.get("HPCMASS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    from hpcmass.launch import leave_word

    # A rank that hpcmass started leaves its error to the command that started it, which says it once.
    if not error.data.get("told") and not leave_word(error):
        click.echo(f"error: {visible(str(error))}", err=True)
    return error.exit_code
