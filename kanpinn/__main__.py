"""``python -m kanpinn`` is ``kanpinn``."""

from kanpinn.cli import main

if __name__ == "__main__":
    main(prog_name="kanpinn")
