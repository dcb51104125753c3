"""`velocity prep --part i/n`: the units of one part, while other processes do the rest.

All parts make or find the same plan. Each touches only its own units and their temporary files,
so it may be killed and restarted at any time. prep/gather.py completes the run.
"""

from prep.planning.settle import share_plan
from prep.request import Request
from prep.run import do_units
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.workspace import clear_part, hold_part
from shards.disk.layout import MANIFEST, dedup_folder
from shards.screen.lines import Say


def prepare_part(request: Request, say: Say) -> None:
    """Do the undone units of `request.part`.

    Raises ValueError or OSError for what the user can fix; what was committed stays.
    """
    part, out = request.part, request.out
    assert part is not None
    with hold_part(out, part):
        plan = share_plan(request, say)
        if (out / MANIFEST).exists():
            say(f"{out}: this set is finished already; nothing was done")
            return
        if dedup_folder(out).exists():
            raise ValueError(
                f"{out}: all units are done, and --finish was interrupted; "
                f"run it again: velocity prep --out {request.place} --finish"
            )
        clear_part(out, part)
        ledger = Ledger(out, plan.plan_id, part.choose(len(plan.units)), Budget())
        num_units, num_done = len(ledger.units), len(ledger.receipts)
        say(f"part {part}: {num_units:,} units, {num_done:,} of them done")
        do_units(request, plan, ledger, say)
    say(
        f"part {part} is done; when all parts 0 to {part.count - 1} are, run: "
        f"velocity prep --out {request.place} --finish"
    )
