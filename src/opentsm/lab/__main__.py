"""``python -m opentsm.lab``."""

from opentsm.lab.cli import app

if __name__ == "__main__":
    app(prog_name="opentsm lab")
