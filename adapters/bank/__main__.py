"""`python -m adapters.bank COMMAND BANK`."""

from .cli import app

app(prog_name="python -m adapters.bank")
