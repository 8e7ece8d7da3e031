// Write each text into the page, and return what the page then shows.
const [given, done] = arguments, field = document.getElementById("text"), answer = document.getElementById("answer");
const text = (selector) => document.querySelector(selector).textContent;
(async () => {
  const found = [];
  for (const each of JSON.parse(given)) {
    field.value = each;
    field.dispatchEvent(new Event("input"));
    while (answer.getAttribute("aria-busy") === "true") await new Promise((resolve) => setTimeout(resolve, 1));
    const shares = [...document.querySelectorAll("#bars i")].map((bar) => Number(bar.style.transform.slice(7, -1)));
    found.push({label: text("#verdict bdi"), shares, problem: text("#problem"), count: text("#count")});
  }
  done(found);
})();
