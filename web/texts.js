// The sentences that the pages show, in the language of the front end.

import { app } from "../../scripts/app.js";

export const TEXTS = {
  en: {
    cut: "{half} stops before: {words}",
    empty: "Nothing to choose from yet: {wanted} (press R).",
    misfit: "{adapter} was not trained with {encoder}: they do not fit each other.",
  },
  de: {
    cut: "{half} abgeschnitten ab: {words}",
    empty: "Noch nichts zur Auswahl: {wanted} (Taste R).",
    misfit: "{adapter} wurde nicht mit {encoder} trainiert: Sie passen nicht zueinander.",
  },
  es: {
    cut: "{half} cortado desde: {words}",
    empty: "Todavía no hay nada que elegir: {wanted} (tecla R).",
    misfit: "{adapter} no se entrenó con {encoder}: no encajan entre sí.",
  },
  fr: {
    cut: "{half} coupé à partir de : {words}",
    empty: "Rien à choisir pour l’instant : {wanted} (touche R).",
    misfit: "{adapter} n’a pas été entraîné avec {encoder} : ils ne vont pas ensemble.",
  },
  ja: {
    cut: "{half} はここから切り捨て: {words}",
    empty: "選択できるファイルがまだありません: {wanted}(R キーで更新)",
    misfit: "{adapter} は {encoder} で学習されていないため、組み合わせられません。",
  },
  ko: {
    cut: "{half} 잘림, 여기부터: {words}",
    empty: "아직 선택할 파일이 없습니다: {wanted} (R 키로 새로고침)",
    misfit: "{adapter}은(는) {encoder}(으)로 학습되지 않아 함께 쓸 수 없습니다.",
  },
  zh: {
    cut: "{half} 从此处截断:{words}",
    empty: "还没有可选的文件:{wanted}(按 R 键刷新)",
    misfit: "{adapter} 不是用 {encoder} 训练的,两者不匹配。",
  },
};

/** The sentences in the front end's language, or in English if there is no translation. */
export function texts() {
  const locale = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  return TEXTS[locale.split("-")[0]] ?? TEXTS.en;
}

/** Fills the {blanks} of a sentence. */
export const fill = (sentence, blanks) => sentence.replace(/{(\w+)}/g, (_, name) => blanks[name]);
