// Runs in a page that holds the report in one frame for each width; leaves what it found in <pre id="found">.
const blend = (above, below) => {
  const alpha = above[3] + below[3] * (1 - above[3]);
  const mixed = [0, 1, 2].map((i) => (above[i] * above[3] + below[i] * below[3] * (1 - above[3])) / (alpha || 1));
  return [...mixed, alpha];
};
const colour = (text) => {
  const [r, g, b, alpha = 1] = text.match(/[\d.]+/g).map(Number);
  return [r, g, b, alpha];
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (element, style) => {
  let found = [0, 0, 0, 0];
  for (let at = element; at; at = at.parentElement) found = blend(found, colour(style(at).backgroundColor));
  return found;
};
const contrast = (element, style) => {
  const [light, dark] = [luminance(colour(style(element).color)), luminance(background(element, style))].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
};
const visible = (element) => element.getClientRects().length > 0;
const says = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());

const measure = (frame) => {
  const page = frame.contentDocument;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const style = (element) => frame.contentWindow.getComputedStyle(element);
  const texts = [...page.querySelectorAll("body *:not(svg *)")].filter(
    (element) => says(element) && visible(element) && style(element).fontSize !== "0px",
  );
  const controls = [...page.querySelectorAll("input, summary, [tabindex]")].filter(visible);
  const reached = controls.filter((control) => {
    control.focus();
    return page.activeElement === control;
  });
  const radios = [...page.querySelectorAll("input[type=radio]")];
  const shown = radios.map((radio) => {
    radio.click();
    return visible(radio.nextElementSibling.nextElementSibling);
  });
  return {
    width: page.documentElement.clientWidth,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    headings: [...page.querySelectorAll("h2")].map((heading) => heading.textContent),
    figures: page.querySelectorAll("figure").length,
    drawn: [...page.querySelectorAll("figure svg")].filter((svg) => svg.viewBox.baseVal.width > 0).length,
    texts: texts.length,
    faint: texts
      .map((element) => [contrast(element, style), element.textContent.trim().slice(0, 40), element.className])
      .filter(([ratio]) => ratio < 4.5),
    controls: controls.length,
    reached: reached.length,
    choices: radios.length,
    shown: shown.filter(Boolean).length,
    ids: page.querySelectorAll("[id]").length,
    distinct: new Set([...page.querySelectorAll("[id]")].map((element) => element.id)).size,
  };
};
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(measure);
  document.getElementById("found").textContent = JSON.stringify(found);
});
