// The sentences that the pages show, in the language of the front end.

import { app } from "../../scripts/app.js";

export const TEXTS = {
  en: {
    cut: "{half} stops before: {words}",
    empty: "Nothing to choose from yet: {wanted} (press R).",
    misfit: "{adapter} was not trained with {encoder}: they do not fit each other.",
    other_file: "{adapter} was trained with another file ({llm}) than {encoder}: if the two do not hold the same LLM, pictures come out wrong.",
    other_llm: "{adapter} was trained with another LLM than {encoder}: load that LLM ({llm}), or pictures come out wrong.",
    other_kind: "{adapter} is for {wanted}, but {checkpoint} is {kind}: they do not fit each other.",
    other_context: "{checkpoint} is {kind}: set context_width of New Cross-Adapter to {width}.",
    loses: "The LLM's half is lost here: put LLM4GEN Fuse Conditioning after this node.",
    couple: "Attention couple repeats regions of unequal length up to a common multiple, which may exceed the memory: choose “cut at 77”.",
    needs_lora: "Trained together with a LoRA of the UNet: load that LoRA too, or pictures come out wrong.",
    needs_patches: "Trained on a UNet with a LoRA or a merge: use the same, or pictures come out wrong.",
    needs_unet: "Trained together with the whole UNet: use that UNet, or pictures come out wrong.",
  },
  de: {
    cut: "{half} abgeschnitten ab: {words}",
    empty: "Noch nichts zur Auswahl: {wanted} (Taste R).",
    misfit: "{adapter} wurde nicht mit {encoder} trainiert: Sie passen nicht zueinander.",
    other_file: "{adapter} wurde mit einer anderen Datei ({llm}) als {encoder} trainiert: Enthalten die beiden nicht dasselbe LLM, werden Bilder falsch.",
    other_llm: "{adapter} wurde mit einem anderen LLM als {encoder} trainiert: Dieses LLM ({llm}) laden, sonst werden Bilder falsch.",
    other_kind: "{adapter} ist für {wanted}, aber {checkpoint} ist {kind}: Sie passen nicht zueinander.",
    other_context: "{checkpoint} ist {kind}: Kontextbreite in „Neuer Cross-Adapter“ auf {width} setzen.",
    loses: "Hier geht die LLM-Hälfte verloren: „LLM4GEN-Konditionierung verschmelzen“ nach diesem Node einsetzen.",
    couple: "Attention Couple wiederholt ungleich lange Regionen bis zu einem gemeinsamen Vielfachen, was den Speicher übersteigen kann: „cut at 77“ wählen.",
    needs_lora: "Zusammen mit einem LoRA des UNet trainiert: Dieses LoRA auch laden, sonst werden Bilder falsch.",
    needs_patches: "Auf einem UNet mit LoRA oder Merge trainiert: Dasselbe verwenden, sonst werden Bilder falsch.",
    needs_unet: "Zusammen mit dem ganzen UNet trainiert: Dieses UNet verwenden, sonst werden Bilder falsch.",
  },
  es: {
    cut: "{half} cortado desde: {words}",
    empty: "Todavía no hay nada que elegir: {wanted} (tecla R).",
    misfit: "{adapter} no se entrenó con {encoder}: no encajan entre sí.",
    other_file: "{adapter} se entrenó con otro archivo ({llm}), no con {encoder}: si los dos no contienen el mismo LLM, las imágenes saldrán mal.",
    other_llm: "{adapter} se entrenó con otro LLM, no con {encoder}: carga ese LLM ({llm}), o las imágenes saldrán mal.",
    other_kind: "{adapter} es para {wanted}, pero {checkpoint} es {kind}: no encajan entre sí.",
    other_context: "{checkpoint} es {kind}: pon ancho_contexto de «Nuevo Cross-Adapter» en {width}.",
    loses: "Aquí se pierde la mitad del LLM: pon «Fusionar condicionamiento LLM4GEN» después de este nodo.",
    couple: "Attention couple repite las regiones de longitud distinta hasta un múltiplo común, que puede exceder la memoria: elige «cut at 77».",
    needs_lora: "Entrenado junto con un LoRA del UNet: carga también ese LoRA, o las imágenes saldrán mal.",
    needs_patches: "Entrenado sobre un UNet con un LoRA o una fusión: usa lo mismo, o las imágenes saldrán mal.",
    needs_unet: "Entrenado junto con el UNet entero: usa ese UNet, o las imágenes saldrán mal.",
  },
  fr: {
    cut: "{half} coupé à partir de : {words}",
    empty: "Rien à choisir pour l’instant : {wanted} (touche R).",
    misfit: "{adapter} n’a pas été entraîné avec {encoder} : ils ne vont pas ensemble.",
    other_file: "{adapter} a été entraîné avec un autre fichier ({llm}) que {encoder} : si les deux ne contiennent pas le même LLM, les images seront fausses.",
    other_llm: "{adapter} a été entraîné avec un autre LLM que {encoder} : chargez ce LLM ({llm}), sinon les images seront fausses.",
    other_kind: "{adapter} est fait pour {wanted}, mais {checkpoint} est {kind} : ils ne vont pas ensemble.",
    other_context: "{checkpoint} est {kind} : réglez largeur_contexte de « Nouveau Cross-Adapter » sur {width}.",
    loses: "La moitié LLM se perd ici : placez « Fusionner un conditionnement LLM4GEN » après ce nœud.",
    couple: "Attention couple répète les régions de longueurs différentes jusqu’à un multiple commun, qui peut dépasser la mémoire : choisissez « cut at 77 ».",
    needs_lora: "Entraîné avec un LoRA de l’UNet : chargez aussi ce LoRA, sinon les images seront fausses.",
    needs_patches: "Entraîné sur un UNet avec un LoRA ou une fusion : utilisez le même, sinon les images seront fausses.",
    needs_unet: "Entraîné avec l’UNet entier : utilisez cet UNet, sinon les images seront fausses.",
  },
  ja: {
    cut: "{half} はここから切り捨て: {words}",
    empty: "選択できるファイルがまだありません: {wanted}(R キーで更新)",
    misfit: "{adapter} は {encoder} で学習されていないため、組み合わせられません。",
    other_file: "{adapter} は {encoder} とは別のファイル({llm})で学習されています:両者が同じ LLM でなければ、正しい画像になりません。",
    other_llm: "{adapter} は {encoder} とは別の LLM で学習されています:その LLM({llm})を読み込まないと、正しい画像になりません。",
    other_kind: "{adapter} は {wanted} 用ですが、{checkpoint} は {kind} のため、組み合わせられません。",
    other_context: "{checkpoint} は {kind} です:「新しいCross-Adapter」のコンテキストの幅を  {width} にしてください。",
    loses: "ここで LLM の側が失われます:このノードの後に「LLM4GENコンディショニングを融合」を置いてください。",
    couple: "Attention couple は長さの違う領域を公倍数まで繰り返すため、メモリーを超えることがあります:「cut at 77」を選んでください。",
    needs_lora: "UNet の LoRA と一緒に学習されています:その LoRA も読み込まないと、正しい画像になりません。",
    needs_patches: "LoRA またはマージを加えた UNet で学習されています:同じものを使わないと、正しい画像になりません。",
    needs_unet: "UNet 全体と一緒に学習されています:その UNet を使わないと、正しい画像になりません。",
  },
  ko: {
    cut: "{half} 잘림, 여기부터: {words}",
    empty: "아직 선택할 파일이 없습니다: {wanted} (R 키로 새로고침)",
    misfit: "{adapter}은(는) {encoder}(으)로 학습되지 않아 함께 쓸 수 없습니다.",
    other_file: "{adapter}은(는) {encoder}와(과) 다른 파일({llm})로 학습되었습니다: 두 파일이 같은 LLM이 아니면 그림이 잘못 나옵니다.",
    other_llm: "{adapter}은(는) {encoder}와(과) 다른 LLM으로 학습되었습니다: 그 LLM({llm})을 불러오지 않으면 그림이 잘못 나옵니다.",
    other_kind: "{adapter}은(는) {wanted}용이지만 {checkpoint}은(는) {kind}이므로 함께 쓸 수 없습니다.",
    other_context: "{checkpoint}은(는) {kind}입니다: “새 Cross-Adapter”의 컨텍스트 너비를 {width}(으)로 설정하세요.",
    loses: "여기서 LLM 쪽이 사라집니다: 이 노드 뒤에 “LLM4GEN 조건 융합”을(를) 두세요.",
    couple: "Attention couple은 길이가 다른 영역을 공배수까지 반복하므로 메모리를 넘을 수 있습니다: “cut at 77”을 선택하세요.",
    needs_lora: "UNet의 LoRA와 함께 학습되었습니다: 그 LoRA도 불러오지 않으면 그림이 잘못 나옵니다.",
    needs_patches: "LoRA나 병합이 적용된 UNet에서 학습되었습니다: 같은 것을 쓰지 않으면 그림이 잘못 나옵니다.",
    needs_unet: "UNet 전체와 함께 학습되었습니다: 그 UNet을 쓰지 않으면 그림이 잘못 나옵니다.",
  },
  zh: {
    cut: "{half} 从此处截断:{words}",
    empty: "还没有可选的文件:{wanted}(按 R 键刷新)",
    misfit: "{adapter} 不是用 {encoder} 训练的,两者不匹配。",
    other_file: "{adapter} 是用另一个文件({llm})而不是 {encoder} 训练的:如果两者不是同一个 LLM,图像不正确。",
    other_llm: "{adapter} 是用另一个 LLM 而不是 {encoder} 训练的:请加载该 LLM({llm}),否则图像不正确。",
    other_kind: "{adapter} 用于 {wanted},而 {checkpoint} 是 {kind}:两者不匹配。",
    other_context: "{checkpoint} 是 {kind}:请将“新建Cross-Adapter”的上下文宽度设为 {width}。",
    loses: "LLM 部分在这里丢失:请在此节点之后放置“LLM4GEN融合条件”。",
    couple: "Attention couple 会把长度不同的区域重复到公倍数,可能超出内存:请选择“cut at 77”。",
    needs_lora: "与 UNet 的一个 LoRA 一起训练:请同时加载该 LoRA,否则图像不正确。",
    needs_patches: "在带有 LoRA 或合并的 UNet 上训练:请使用相同的,否则图像不正确。",
    needs_unet: "与整个 UNet 一起训练:请使用该 UNet,否则图像不正确。",
  },
};

/** The sentences in the front end's language, or in English if there is no translation. */
export function texts() {
  const locale = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  return TEXTS[locale.split("-")[0]] ?? TEXTS.en;
}

/** Fills the {blanks} of a sentence. */
export const fill = (sentence, blanks) => sentence.replace(/{(\w+)}/g, (_, name) => blanks[name]);
