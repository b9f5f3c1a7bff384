// A click on a sample shows its seed in all variants, large and side by side; arrow keys go on to the next seed.
for (const section of document.querySelectorAll("[data-gallery]")) {
  const dialog = section.querySelector("dialog");
  const large = dialog.querySelector(".large");
  const title = dialog.querySelector("h2");
  const seeds = [...section.querySelectorAll("thead th")].map((cell) => cell.dataset.seed);
  let shown = 0;

  const show = (column) => {
    shown = (column + seeds.length) % seeds.length;
    title.textContent = `Seed ${seeds[shown]}`;
    const figures = [...section.querySelectorAll("tbody")].map((variant) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = variant.dataset.variant;
      figure.append(caption);
      for (const row of variant.querySelectorAll("tr.images")) {
        figure.append(row.querySelectorAll("img")[shown].cloneNode());
      }
      return figure;
    });
    large.replaceChildren(...figures);
  };

  section.addEventListener("click", (event) => {
    const sample = event.target.closest(".sample");
    const move = event.target.closest("[data-move]");
    if (sample) {
      show(sample.closest("td").cellIndex);
      dialog.showModal();
    } else if (move) {
      show(shown + Number(move.dataset.move));
    } else if (event.target === dialog || event.target.closest("[data-close]")) {
      dialog.close();
    }
  });
  dialog.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) show(shown + move);
  });
}
