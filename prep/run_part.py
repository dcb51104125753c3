"""`velocity prep --part i/n`: the units of one part, beside processes that do the others.

All parts make or find the same plan; each touches nothing but its own units, their temporary
files among it, so it may be killed and started again at any time. prep/gather.py ends the run.
"""

from prep.planning.settle import share_plan
from prep.request import Request
from prep.run import do_units
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.workspace import clear_part, hold_part, make_folders
from shards.disk.layout import MANIFEST, dedup_folder
from shards.screen import Say


def prepare_part(request: Request, say: Say) -> None:
    """Do the units of `request.part`, those that are not done.

    Raises ValueError or OSError for what the user can mend; what was committed stays.
    """
    part, out = request.part, request.out
    assert part is not None
    make_folders(out)
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
        say(f"part {part}: {num_units:,} of the units, {num_done:,} of them done")
        do_units(request, plan, ledger, say)
    say(
        f"part {part} is done; when all parts 0 to {part.count - 1} are: "
        f"velocity prep --out {request.place} --finish"
    )
