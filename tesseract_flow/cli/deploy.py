"""`tesseract-flow deploy`: a problem, on a work pool of Prefect."""

from __future__ import annotations

import argparse

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments


def add(commands: Commands) -> None:
    parser = commands.add_parser("deploy", help="deploy a problem to a Prefect work pool, whose workers run it")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--name", help="of the deployments (default: that of the problem)")
    parser.add_argument("--pool", help="work pool (default: Prefect's default one, or the only one there is)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    parser.add_argument("--image", help="for pools of containers: an image with tesseract-flow and the problem in it")
    parser.add_argument(
        "--folder", help="in which runs start, on the worker (default: this folder; with --image, that of the image)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.flows.deploying import deploy_problem

    pool, made = deploy_problem(
        arguments.problem,
        name=arguments.name,
        settings=assignments(arguments.set),
        pool=arguments.pool,
        image=arguments.image,
        folder=arguments.folder,
    )
    for deployment in made:
        print(f"{deployment.name}: {deployment.page or 'deployed'}")
    print(f"Runs wait for a worker of the pool: prefect worker start --pool {pool}")
    print(f"Start one from its page, or here: prefect deployment run {made[0].name}")
    return 0
