from ratrain.api import LadderRun as LadderRun
from ratrain.api import Loaded as Loaded
from ratrain.api import Mechanism as Mechanism
from ratrain.api import Patch as Patch
from ratrain.api import Resolved as Resolved
from ratrain.api import RunLog as RunLog
from ratrain.api import StudyRun as StudyRun
from ratrain.api import Verdict as Verdict
from ratrain.api import ladder as ladder
from ratrain.api import load as load
from ratrain.api import read_manifest as read_manifest
from ratrain.api import read_plan as read_plan
from ratrain.api import read_run as read_run
from ratrain.api import register as register
from ratrain.api import resume as resume
from ratrain.api import study as study
from ratrain.api import train as train
from ratrain.api import try_ideas as try_ideas
from ratrain.api import verify as verify

__version__: str
