
from riprap.report.charts import lanes, save

