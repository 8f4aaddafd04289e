"""The axes' values in words, Chinese and English: what pages show and what search also finds."""

from __future__ import annotations

TIERS: dict[str, tuple[str, str]] = {
    "base": ("制造业基础大模型", "manufacturing base model"),
    "vertical": ("垂直领域大模型", "vertical-domain model"),
    "small": ("工业小模型", "industrial small model"),
    "app": ("工业应用与智能体", "industrial app or agent"),
}
TASKS: dict[str, tuple[str, str]] = {
    "tabular-classification": ("表格分类", "tabular classification"),
    "tabular-regression": ("表格回归预测", "tabular regression"),
    "series-classification": ("时序分类", "time series classification"),
    "series-regression": ("时序回归预测", "time series regression"),
    "series-forecasting": ("时序预测", "time series forecasting"),
    "text-classification": ("文本分类", "text classification"),
    "image-classification": ("图像分类", "image classification"),
    "anomaly-detection": ("异常检测", "anomaly detection"),
    "embedding": ("向量嵌入", "embedding"),
    "tensor": ("张量计算", "tensor"),
}
MODALITIES: dict[str, tuple[str, str]] = {
    "tabular": ("表格", "tabular"),
    "series": ("时间序列", "time series"),
    "image": ("图像", "image"),
    "text": ("文本", "text"),
    "tensor": ("张量", "tensor"),
}
LINKS: dict[str, str] = {
    "研发设计": "R&D and design",
    "中试验证": "pilot verification",
    "生产制造": "production",
    "运维服务": "operation and maintenance",
    "经营管理": "business management",
    "安全生产": "work safety",
    "防灾减灾": "disaster prevention",
}
SCENARIOS: dict[str, str] = {
    "仿真模拟": "simulation",
    "匹配研发": "matched R&D",
    "板材切割": "sheet cutting",
    "精密加工": "precision machining",
    "缺陷检测": "defect detection",
    "参数优化": "parameter optimisation",
    "智能排产": "smart scheduling",
    "预测性维护": "predictive maintenance",
    "智慧物流": "smart logistics",
    "智慧能源管理": "energy management",
    "工单/合同生成": "work-order and contract generation",
    "消费分析": "consumption analysis",
}
